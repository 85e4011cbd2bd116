"""Pure policies: who deserves what, and where it goes best."""
