"""Batches: seeded, of chosen slices, on the device."""
