"""Quantities of samples, from which a report is made."""
