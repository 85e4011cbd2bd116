"""What runs on each GPU node."""
