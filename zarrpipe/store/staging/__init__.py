"""Rows that cannot be mapped where they are: fetched once, unit by unit, into a mapped cache."""
