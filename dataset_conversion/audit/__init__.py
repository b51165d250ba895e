"""The search for leaks in splits."""
