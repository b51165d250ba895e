"""Residual U-Net (RUNet) of paper 003, section 2.5.

Level 1 is two plain convolutions, every other level one residual block; max pooling and dropout after each level of
the encoder; on the way up: upsampling, concatenation, residual block. The residual block is nnU-Net's (a projected
shortcut where channels change). The paper gives no dropout rate (ours: that of its classifier, 0.2) and no kind of
upsampling (ours: nearest neighbour, Keras' default). Its filters, 16 to 256, are up to the plan.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_pool_op, maybe_convert_scalar_to_list
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from braintum.architectures.plan_topology import topology_for_decoder


class RUNetEncoder(nn.Module):
    """Plain convolutions, then residual blocks, with max pooling and dropout in between.

    Args:
        input_channels: channels of the image.
        features_per_stage: channels of each level, highest resolution first.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: convolution kernel of each level.
        strides: pooling in front of each level; 1 for the first.
        layer_kwargs: ``conv_bias``, ``norm_op``, ``norm_op_kwargs``, ``dropout_op``, ``dropout_op_kwargs``, ``nonlin``
            and ``nonlin_kwargs`` of the plan.
        pooling_dropout: dropout rate after each pooling.

    Raises:
        ValueError: the first level has a stride.
    """

    def __init__(
        self,
        input_channels: int,
        features_per_stage: Sequence[int],
        conv_op: Any,
        kernel_sizes: Sequence[Any],
        strides: Sequence[Any],
        layer_kwargs: dict[str, Any],
        pooling_dropout: float,
    ) -> None:
        super().__init__()
        self.output_channels = list(features_per_stage)
        self.conv_op = conv_op
        self.kernel_sizes = list(kernel_sizes)
        self.strides = [maybe_convert_scalar_to_list(conv_op, stride) for stride in strides]
        for name, value in layer_kwargs.items():  # UNetDecoder reads them
            setattr(self, name, value)
        if any(step != 1 for step in self.strides[0]):
            raise ValueError(f"the first level works at full resolution, the plan gives it the stride {strides[0]}")
        max_pool = get_matching_pool_op(conv_op, pool_type="max")
        stages: list[nn.Module] = [
            StackedConvBlocks(
                2, conv_op, input_channels, self.output_channels[0], self.kernel_sizes[0], 1, **layer_kwargs
            )
        ]
        pools: list[nn.Module] = [nn.Identity()]
        for level in range(1, len(self.output_channels)):
            pools.append(nn.Sequential(max_pool(self.strides[level], self.strides[level]), nn.Dropout(pooling_dropout)))
            channels = self.output_channels[level - 1 : level + 1]
            stages.append(BasicBlockD(conv_op, *channels, self.kernel_sizes[level], 1, **layer_kwargs))
        self.pools = nn.ModuleList(pools)
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, highest resolution first."""
        skips = []
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(pool(x))
            skips.append(x)
        return skips

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the convolutions, in the unit of nnU-Net's memory estimate."""
        total = 0
        size = list(input_size)
        stage: Any
        for stride, stage in zip(self.strides, self.stages, strict=True):
            size = [edge // step for edge, step in zip(size, stride, strict=True)]
            total += int(stage.compute_conv_feature_map_size(size))
        return total


class RUNetDecoder(UNetDecoder):
    """nnU-Net's decoder with interpolation for transposed convolutions and residual blocks for plain ones."""

    def __init__(self, encoder: RUNetEncoder, num_classes: int, deep_supervision: bool) -> None:
        topology: Any = topology_for_decoder(encoder)
        super().__init__(topology, num_classes, 1, deep_supervision)
        features, strides = topology.output_channels, topology.strides
        levels = range(len(features) - 1, 0, -1)
        self.transpconvs = nn.ModuleList(nn.Upsample(scale_factor=tuple(strides[level])) for level in levels)
        self.stages = nn.ModuleList(
            BasicBlockD(
                topology.conv_op,
                features[level] + features[level - 1],
                features[level - 1],
                topology.kernel_sizes[level - 1],
                1,
                topology.conv_bias,
                topology.norm_op,
                topology.norm_op_kwargs,
                topology.dropout_op,
                topology.dropout_op_kwargs,
                topology.nonlin,
                topology.nonlin_kwargs,
            )
            for level in levels
        )


class RUNet(nn.Module):
    """Residual U-Net on the topology of any plan.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        features_per_stage: channels of each level, highest resolution first.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: convolution kernel of each level.
        strides: pooling in front of each level; 1 for the first.
        conv_bias: whether convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
        dropout_op: dropout class within the blocks, None for none.
        dropout_op_kwargs: its arguments.
        nonlin: class of the nonlinearity.
        nonlin_kwargs: its arguments.
        deep_supervision: return a list of segmentations.
        pooling_dropout: dropout rate after each pooling.
        n_stages: number of levels; ``features_per_stage`` says it already.
        n_conv_per_stage: not used, nor are the next two: the paper has one block a level.
        n_blocks_per_stage: not used.
        n_conv_per_stage_decoder: not used.

    Raises:
        ValueError: the first level has a stride.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int],
        conv_op: Any,
        kernel_sizes: Sequence[Any],
        strides: Sequence[Any],
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: dict | None = None,
        nonlin: Any = None,
        nonlin_kwargs: dict | None = None,
        deep_supervision: bool = False,
        pooling_dropout: float = 0.2,
        n_stages: int | None = None,
        n_conv_per_stage: Any = None,
        n_blocks_per_stage: Any = None,
        n_conv_per_stage_decoder: Any = None,
    ) -> None:
        super().__init__()
        layer_kwargs = {
            "conv_bias": conv_bias,
            "norm_op": norm_op,
            "norm_op_kwargs": norm_op_kwargs,
            "dropout_op": dropout_op,
            "dropout_op_kwargs": dropout_op_kwargs,
            "nonlin": nonlin,
            "nonlin_kwargs": nonlin_kwargs,
        }
        self.encoder = RUNetEncoder(
            input_channels, features_per_stage, conv_op, kernel_sizes, strides, layer_kwargs, pooling_dropout
        )
        self.decoder = RUNetDecoder(self.encoder, num_classes, deep_supervision)

    def forward(self, x: torch.Tensor) -> Any:
        """Segmentation logits.

        Args:
            x: (B, C, [Z,] Y, X), each axis divisible by the product of its strides.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first.
        """
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``."""
        decoder = int(self.decoder.compute_conv_feature_map_size(input_size))
        return self.encoder.compute_conv_feature_map_size(input_size) + decoder

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation, for ``network.apply``."""
        InitWeights_He(1e-2)(module)
