"""From a source's cases to nnU-Net's raw format."""
