"""Sums that a store keeps, from which statistics follow."""
