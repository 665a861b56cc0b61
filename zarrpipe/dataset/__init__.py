"""Stores as one map-style dataset."""
