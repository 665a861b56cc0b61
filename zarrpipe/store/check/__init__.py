"""Looking a store through for damage, and putting right what can be without a loss."""
