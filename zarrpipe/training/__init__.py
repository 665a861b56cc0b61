"""From a dataset to a training loop."""
