"""Normalisation and preprocessing, as plans name them."""
