"""The trace-driven simulator: the scheduler itself on a virtual clock."""
