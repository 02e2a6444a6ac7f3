"""Training of one model for every rate."""
