"""Samples of a store as files of other programs."""
