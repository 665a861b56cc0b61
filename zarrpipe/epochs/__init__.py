"""An epoch as a function: which samples, how often, in which order, cut into which batches."""
