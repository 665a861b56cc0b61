"""Batches of the libraries that train potentials, made of a `Batch` without a loop over systems."""
