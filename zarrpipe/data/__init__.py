"""Fields, systems and batches: the vocabulary that every other floor speaks."""
