"""What the world outside says: load signals and where data lives."""
