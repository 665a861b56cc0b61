"""Worker processes that read batches into shared memory."""
