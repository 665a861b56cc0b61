"""Engines side by side: how fast zarrpipe and its alternatives read and write the same samples.

``python -m benchmarks --help`` says how to run it, and docs/understanding/benchmarks.md
what is measured.
"""
