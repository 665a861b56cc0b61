"""What looks wrong in a store."""
