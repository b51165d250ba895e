"""Weights to start a training from: which there are, where they are kept, and how they get into a network."""
