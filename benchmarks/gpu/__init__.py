"""On a CUDA device, in at most 8 minutes: tests, transfers, gathers, the wait of a small MACE."""
