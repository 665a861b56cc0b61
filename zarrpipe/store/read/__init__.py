"""From a store to a batch."""
