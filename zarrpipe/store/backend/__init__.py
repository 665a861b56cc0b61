"""The place of a store: files, locks, swaps and mapped memory."""
