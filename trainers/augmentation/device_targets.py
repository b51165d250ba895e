"""What follows augmentation in nnU-Net, on batches and on any device: masked images, regions, deep supervision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from braintum.trainers.augmentation.augmentation_parameters import Parameters, Step


class FixedStep(Step):
    """Without random parameters; every sample is changed."""

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`; nothing."""
        return {}


@dataclass(frozen=True)
class MaskImage(FixedStep):
    """batchgeneratorsv2's ``MaskImageTransform``: sets some channels where the segmentation is negative.

    Attributes:
        channels: of the image.
        target_channel: of the segmentation.
        value: to set.
    """

    channels: tuple[int, ...]
    target_channel: int
    value: float

    @staticmethod
    def of(transform: Any) -> "MaskImage":
        """From ``MaskImageTransform``."""
        return MaskImage(
            tuple(transform.apply_to_channels), transform.channel_idx_in_seg, float(transform.set_outside_to)
        )

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Step`."""
        outside = target[:, self.target_channel] < 0
        for channel in self.channels:
            data[:, channel].masked_fill_(outside, self.value)
        return data, target


@dataclass(frozen=True)
class RemoveLabel(FixedStep):
    """batchgeneratorsv2's ``RemoveLabelTransform``.

    Attributes:
        label: to remove.
        replacement: for it.
        channels: of the segmentation; None for all.
    """

    label: int
    replacement: int
    channels: tuple[int, ...] | None

    @staticmethod
    def of(transform: Any) -> "RemoveLabel":
        """From ``RemoveLabelTransform``."""
        channels = transform.segmentation_channels
        return RemoveLabel(transform.label_value, transform.set_to, None if channels is None else tuple(channels))

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Step`."""
        for channel in range(target.shape[1]) if self.channels is None else self.channels:
            values = target[:, channel]
            values.masked_fill_(values == self.label, self.replacement)
        return data, target


@dataclass(frozen=True)
class ConvertToRegions(FixedStep):
    """batchgeneratorsv2's ``ConvertSegmentationToRegionsTransform``.

    Attributes:
        regions: the labels of each.
        channel: of the segmentation.
    """

    regions: tuple[tuple[int, ...], ...]
    channel: int

    @staticmethod
    def of(transform: Any) -> "ConvertToRegions":
        """From ``ConvertSegmentationToRegionsTransform``."""
        regions = tuple(tuple(int(label) for label in region) for region in transform.regions)
        return ConvertToRegions(regions, transform.channel_in_seg)

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Step`; the result is (B, regions, [Z,] Y, X) bool."""
        values = target[:, self.channel]
        result = torch.zeros(
            (len(target), len(self.regions), *target.shape[2:]), dtype=torch.bool, device=target.device
        )
        for index, region in enumerate(self.regions):
            for label in region:
                result[:, index] |= values == label
        return data, result


@dataclass(frozen=True)
class DownsampleTarget(FixedStep):
    """batchgeneratorsv2's ``DownsampleSegForDSTransform``.

    Attributes:
        scales: a number, or one for each axis, for each output of the network.
    """

    scales: tuple[float | tuple[float, ...], ...]

    @staticmethod
    def of(transform: Any) -> "DownsampleTarget":
        """From ``DownsampleSegForDSTransform``."""
        return DownsampleTarget(
            tuple(tuple(scale) if isinstance(scale, Sequence) else scale for scale in transform.ds_scales)
        )

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See :class:`Step`; the result has a segmentation for each scale."""
        full = target.float()
        targets = []
        for scale in self.scales:
            factors = scale if isinstance(scale, tuple) else (scale,) * (target.ndim - 2)
            if all(factor == 1 for factor in factors):
                targets.append(target)
                continue
            size = [round(edge * factor) for edge, factor in zip(target.shape[2:], factors, strict=True)]
            targets.append(functional.interpolate(full, size, mode="nearest-exact").to(target.dtype))
        return data, targets
