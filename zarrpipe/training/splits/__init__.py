"""Which samples belong to train, validation and test."""
