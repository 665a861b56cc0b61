"""An epoch as a function of a seed."""
