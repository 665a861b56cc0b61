"""Readers of files: each scans a source, and reads a part of it as columns of numbers."""
