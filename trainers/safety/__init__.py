"""Checkpoints and side files that survive a killed process."""
