"""Networks as nnU-Net builds them from plans."""
