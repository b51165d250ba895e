"""Intensities as ImageNet weights expect them, whatever normalisation the plans have."""

from collections.abc import Sequence

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_scale_and_offset(mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    """What turns standardised intensities into those that weights with another normalisation expect.

    On average, ImageNet's images have mean 0 and deviation 1 after ImageNet's own normalisation. Weights trained with
    another one, such as to [-1, 1], saw the same images with other means and deviations.

    Args:
        mean: that the weights' normalisation subtracts, a colour each.
        std: that it divides by.

    Returns:
        Factor on standardised intensities, and what is added to them.
    """
    own_mean, own_std = (sum(values) / len(values) for values in (mean, std))
    imagenet_mean, imagenet_std = (sum(values) / len(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return imagenet_std / own_std, (imagenet_mean - own_mean) / own_std


def standardise(x: torch.Tensor, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    """Each channel of each image with mean ``offset`` and deviation ``scale``; a constant channel becomes ``offset``.

    Args:
        x: (B, C, Y, X).
        scale: factor on standardised intensities.
        offset: added to them.
    """
    variance, mean = torch.var_mean(x.float(), (2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-6) * scale + offset
