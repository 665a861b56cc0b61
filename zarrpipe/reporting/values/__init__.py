"""Numbers of samples that a report is made of."""
