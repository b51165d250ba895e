"""Networks that others published, to compare with: of MONAI, timm and segmentation_models_pytorch, or after papers."""
