"""Where a store is, and what the place can do."""
