"""Copies of one image: fingerprints, index, confirmation."""
