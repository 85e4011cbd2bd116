"""Published results, and the same by our own programs."""
