"""Decoded rows of arrays that cannot be mapped."""
