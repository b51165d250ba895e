"""Losses of the masks, and the balance of the two tasks."""
