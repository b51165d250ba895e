"""Encoder of BrainTumNet, and what it shares with the decoder: the plan, and where BT blocks stand.

Paper and what is settled: :mod:`braintum.architectures.networks.braintumnet`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from braintum.architectures.blocks.averaging import average_to
from braintum.architectures.blocks.bt_block import BTBlock
from braintum.architectures.blocks.modality_masks import ModalityFeatures
from braintum.architectures.heads.t_inception import ParallelConvolutions

_TRANSFORMER_DOWNSAMPLING = 8


@dataclass(frozen=True)
class Topology:
    """The plan: one list entry a level, highest resolution first, and the choice of layers."""

    channels: list[int]
    kernels: list[list[int]]
    strides: list[list[int]]
    conv_op: Any
    conv_bias: bool
    norm_op: Any
    norm_op_kwargs: dict | None
    dropout_op: Any
    dropout_op_kwargs: dict | None
    nonlin: Any
    nonlin_kwargs: dict | None

    def restricted_to(self, levels: Sequence[int], strides: Sequence[Sequence[int]]) -> "Topology":
        """Of some levels only; ``strides`` lead from each to the next."""
        return replace(
            self,
            channels=[self.channels[level] for level in levels],
            kernels=[self.kernels[level] for level in levels],
            strides=[list(stride) for stride in strides],
        )

    def has_transformer(self, level: int) -> bool:
        """Whether a level's resolution is low enough for BT blocks."""
        downsampling = prod(prod(stride) for stride in self.strides[: level + 1])
        enough = _TRANSFORMER_DOWNSAMPLING ** len(self.strides[0])
        return downsampling >= enough or level == len(self.channels) - 1

    def convolution(self, input_channels: int, channels: int, kernel: list[int], stride: Any = 1) -> nn.Sequential:
        """Convolution, dropout, norm, nonlinearity."""
        padding = [(edge - 1) // 2 for edge in kernel]
        convolution = self.conv_op(input_channels, channels, kernel, stride, padding, bias=self.conv_bias)
        return nn.Sequential(convolution, *self.after_convolution(channels))

    def after_convolution(self, channels: int) -> list[nn.Module]:
        """Dropout, norm, nonlinearity, as far as the plan has them."""
        layers: list[nn.Module] = []
        if self.dropout_op is not None:
            layers.append(self.dropout_op(**(self.dropout_op_kwargs or {})))
        if self.norm_op is not None:
            layers.append(self.norm_op(channels, **(self.norm_op_kwargs or {})))
        if self.nonlin is not None:
            layers.append(self.nonlin(**(self.nonlin_kwargs or {})))
        return layers


class _MultiKernelBlock(nn.Module):
    """Convolutions of three kernel sizes in parallel, with a shortcut around them."""

    def __init__(self, topology: Topology, channels: int, kernel: list[int]) -> None:
        super().__init__()
        if channels < 3:
            raise ValueError(f"each level needs 3 channels at least, one a kernel size, got {channels}")
        quarter = max(1, channels // 4)
        larger = [edge + 2 if edge > 1 else 1 for edge in kernel]
        branches = [(quarter, [1] * len(kernel)), (channels - 2 * quarter, kernel), (quarter, larger)]
        self.convolutions = nn.Sequential(
            ParallelConvolutions(topology.conv_op, channels, branches, topology.conv_bias),
            *topology.after_convolution(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.convolutions(x)


class BrainTumNetEncoder(nn.Module):
    """Levels of convolutions with several kernel sizes; BT blocks at low resolution.

    Args:
        input_channels: channels of the image.
        topology: the plan.
        num_blocks: blocks of parallel convolutions, one number a level.
        use_transformer: False leaves the BT blocks out.
        modality_masks: True for a branch of their masks a channel of the image.
    """

    def __init__(
        self,
        input_channels: int,
        topology: Topology,
        num_blocks: list[int],
        use_transformer: bool,
        modality_masks: bool = False,
    ) -> None:
        super().__init__()
        num_modalities = input_channels if modality_masks and use_transformer else 0
        self.modalities = ModalityFeatures(topology.conv_op, num_modalities) if num_modalities else None
        self.conv_op = topology.conv_op
        self.output_channels = topology.channels
        self.strides = topology.strides
        self.num_blocks = num_blocks
        self.stages = nn.ModuleList()
        self.bt_blocks: Any = nn.ModuleList()  # one list a level, empty where there is none
        for level, (channels, kernel, stride) in enumerate(
            zip(topology.channels, topology.kernels, topology.strides, strict=True)
        ):
            self.stages.append(
                nn.Sequential(
                    topology.convolution(input_channels, channels, kernel, stride),
                    *(_MultiKernelBlock(topology, channels, kernel) for _ in range(num_blocks[level])),
                )
            )
            bt_blocks = []
            if use_transformer and topology.has_transformer(level):
                read = input_channels + (self.modalities.num_features if self.modalities else 0)
                bt_blocks = [BTBlock(topology.conv_op, channels, read, num_modalities=num_modalities)]
            self.bt_blocks.append(nn.ModuleList(bt_blocks))
            input_channels = channels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, [Z,] Y, X) to the features of every level, highest resolution first."""
        skips = []
        modalities = None if self.modalities is None else self.modalities(x)
        for stage, bt_blocks in zip(self.stages, self.bt_blocks, strict=True):
            low_level, x = x, stage(x)
            for bt_block in bt_blocks:
                if modalities is not None:
                    low_level = torch.cat((low_level, average_to(modalities, low_level.shape[2:])), 1)
                x = bt_block(x, low_level)
            skips.append(x)
        return skips

    def level_sizes(self, input_size: Sequence[int]) -> list[tuple[int, ...]]:
        """Spatial size of every level."""
        sizes, size = [], tuple(input_size)
        for stride in self.strides:
            size = tuple(edge // step for edge, step in zip(size, stride, strict=True))
            sizes.append(size)
        return sizes

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements, in the unit of nnU-Net's memory estimate."""
        total = self.modalities.num_features * prod(input_size) if self.modalities else 0
        for level, size in enumerate(self.level_sizes(input_size)):
            total += (1 + self.num_blocks[level]) * self.output_channels[level] * prod(size)
            total += sum(block.compute_conv_feature_map_size(size) for block in self.bt_blocks[level])
        return total
