"""From a batch to a store."""
