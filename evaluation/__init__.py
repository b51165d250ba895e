"""Metrics, and the demonstration that prints them."""
