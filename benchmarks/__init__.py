"""What is claimed about speed, and the peers beside it."""
