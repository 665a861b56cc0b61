"""Batches that are read before they are asked for: by worker processes, or by a thread."""
