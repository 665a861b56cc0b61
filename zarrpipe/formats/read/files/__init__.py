"""Readers of the files of other programs, each imported when a file of its format is read."""
