"""nnU-Net trainers that segment the tumour and classify its type."""
