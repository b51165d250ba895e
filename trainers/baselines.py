"""Networks of others by the recipe of paper 000, which compares with some: masks alone, or with our class head too.

Settled, since the paper does not say: all of them are trained as BrainTumNet is, from random weights.
"""

BASELINES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "TransUNet": ("transunet", "ResNet-50, ViT-B/16 and a cascaded upsampler (Chen 2021)", (2,)),
    "SwinUNet": ("swin_unet", "U-Net of Swin transformer blocks (Cao 2021)", (2,)),
    "DeepLabV3Plus": ("smp_networks", "DeepLabV3+ on ResNet-50 (Chen 2018)", (2,)),
    "MedFormer": ("medformer", "U-Net with bidirectional attention to semantic maps (Gao 2022)", (2, 3)),
    "SwinUNETR": ("monai_networks", "Swin transformer and UNETR's decoder (Hatamizadeh 2022)", (2, 3)),
    "MedNeXt": ("monai_networks", "MedNeXt-B, kernels of 3 (Roy 2023)", (2, 3)),
    "UPerNet": ("smp_networks", "UPerNet on ConvNeXt-T (Xiao 2018, Liu 2022)", (2,)),
    "SegFormer": ("smp_networks", "SegFormer's decoder (Xie 2021) on PVT v2-B2", (2,)),
}
"""Name -> module in :mod:`braintum.architectures.baselines`, what it is, and dimensions of its images."""
COMPARED = ("TransUNet", "SwinUNet", "DeepLabV3Plus", "MedFormer")
"""Those in the tables of paper 000."""
