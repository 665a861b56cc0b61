"""Long campaigns that try to lose, tear or confuse what zarrpipe has acknowledged.

``python -m reliability --help`` says how to run them, and docs/understanding/reliability.md what
they found.
"""
