"""Files of other programs into a store, and out of it."""
