"""Small batches, nnU-Net's own transforms, and what loader and device do with them."""

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation

LABELS = (-1, 0, 1, 2, 3)


SIGNIFICANT = 1e-3
"""Of a Kolmogorov-Smirnov test. All draws are seeded: a test that passes once passes always."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Noise without its high frequencies, so that rounding a coordinate changes little."""
    noise = torch.randn((1, *shape), generator=generator(seed))
    coarse = [max(2, edge // 4) for edge in shape[1:]]
    mode = "bilinear" if len(coarse) == 2 else "trilinear"
    small = torch.nn.functional.interpolate(noise, coarse, mode=mode)
    return torch.nn.functional.interpolate(small, shape[1:], mode=mode)[0]


def batch_of(shape: Sequence[int], batch_size: int = 4, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and segmentations (B, C, …) with all labels."""
    data = torch.stack([smooth((channels, *shape), seed) for seed in range(batch_size)])
    target = (data[:, :1] * 2.5).round().clamp(-1, 3).to(torch.int16)
    return data, target


def stock_transforms(
    patch_size: tuple[int, ...], in_plane: bool = False, rotation: float = 0.5, **options: Any
) -> ComposeTransforms:
    scales = [[1.0] * len(patch_size), [0.5] * len(patch_size)]
    mirror_axes = tuple(range(len(patch_size)))
    return nnUNetTrainer.get_training_transforms(
        patch_size, (-rotation, rotation), scales, mirror_axes, in_plane, **options
    )


def cut(tensor: torch.Tensor, lower: Sequence[int], upper: Sequence[int]) -> torch.Tensor:
    return tensor[(slice(None), *(slice(low, high) for low, high in zip(lower, upper, strict=True)))]


def augment(
    augmentation: DeviceAugmentation, data: torch.Tensor, target: torch.Tensor, seed: int
) -> tuple[torch.Tensor, Any]:
    """What loader and device do with whole patches of the initial size."""
    drawn = generator(seed)
    boxes, spatial = augmentation.draw_spatial(len(data), drawn)
    steps = augmentation.draw_steps(len(data), data.shape[1], drawn)
    parts: dict[bool, list] = {False: [], True: []}
    for index, is_transformed in enumerate(boxes.is_transformed):
        box = boxes.lower[index], boxes.upper[index]
        parts[is_transformed].append((cut(data[index], *box), cut(target[index], *box)))
    stacked = [
        tuple(torch.stack(tensors) for tensors in zip(*part, strict=True)) if part else None for part in parts.values()
    ]
    return augmentation.apply(*stacked, spatial, steps)
