"""Training, validation and test: on which side each sample is, for good."""
