"""Metrics of masks, classes and both, and their intervals."""
