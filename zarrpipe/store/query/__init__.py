"""Which samples of a store meet a condition, and the columns that conditions may name."""
