"""Predictions under corruption."""
