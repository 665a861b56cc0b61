"""Stored sums of labels, from which statistics follow."""
