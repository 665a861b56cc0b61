"""What a dataset of several stores is put together of."""
