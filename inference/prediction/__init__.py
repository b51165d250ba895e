"""Masks and class evidence of cases, in bulk or exactly as nnU-Net computes them."""
