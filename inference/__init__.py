"""Joint prediction: nnU-Net's segmentation and the tumour's class in one pass."""
