"""nnU-Net's U-Nets with the classification head, whose deepest encoder stages attend beyond their convolutions.

Large kernel attention (paper 002) or a BT block with adaptive masked attention (paper 000) refines what the deepest
stages hand to decoder and head. What they add is scaled by a learned number a channel that starts small (layer scale,
Touvron et al. 2021, https://arxiv.org/abs/2103.17239), so that weights of the stock network remain a good start. Every
stock state-dict key is kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from braintum.architectures.blocks.bt_block import BTBlock
from braintum.architectures.blocks.large_kernel_attention import LargeKernelAttention
from braintum.architectures.networks.multi_task_unet import MultiTaskMixin, stock_counterpart

_NUM_ATTENDED_STAGES = 3
_INITIAL_SCALE = 0.1


class _Refinement(nn.Module):
    """Base: adds what an attention makes of the features of a stage, scaled channel by channel."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, *[1] * dimensions), _INITIAL_SCALE))
        self.attention: Any

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the attention, in the unit of nnU-Net's memory estimate."""
        return self.attention.compute_conv_feature_map_size(input_size)


class LargeKernelRefinement(_Refinement):
    """``x + scale * LKA(x)``.

    Args:
        encoder: nnU-Net's, whose convolutions' norm the attention takes.
        stage: to be refined.
    """

    def __init__(self, encoder: Any, stage: int) -> None:
        channels = encoder.output_channels[stage]
        super().__init__(channels, len(encoder.strides[0]))
        self.attention = LargeKernelAttention(
            encoder.conv_op, channels, norm_op=encoder.norm_op, norm_op_kwargs=encoder.norm_op_kwargs
        )

    def forward(self, features: torch.Tensor, finer: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape; ``finer`` is not needed."""
        return features + self.scale * self.attention(features)


class MaskedAttentionRefinement(_Refinement):
    """``x + scale * (BT block(x) - x)``; the masks also read the stage before.

    Args:
        encoder: nnU-Net's.
        stage: to be refined, not the first.
    """

    def __init__(self, encoder: Any, stage: int) -> None:
        channels = encoder.output_channels[stage]
        super().__init__(channels, len(encoder.strides[0]))
        self.attention = BTBlock(encoder.conv_op, channels, encoder.output_channels[stage - 1])

    def forward(self, features: torch.Tensor, finer: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape; ``finer`` is the output of the stage before."""
        return features + self.scale * (self.attention(features, finer) - features)


class _AttendedMixin(MultiTaskMixin):
    """Refines the deepest stages before decoder and head see them."""

    refinement_class: type[LargeKernelRefinement] | type[MaskedAttentionRefinement]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        num_stages = len(self.encoder.output_channels)
        self.first_attended_stage = max(1, num_stages - _NUM_ATTENDED_STAGES)
        self.refinements = nn.ModuleList(
            self.refinement_class(self.encoder, stage) for stage in range(self.first_attended_stage, num_stages)
        )

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Encoder features (B, C, [Z,] Y, X), highest resolution first, the deepest ones refined."""
        skips = super().encode(x)
        first = self.first_attended_stage
        refined = [
            refine(features, finer)
            for refine, features, finer in zip(self.refinements, skips[first:], skips[first - 1 : -1], strict=True)
        ]
        return skips[:first] + refined

    def compute_conv_feature_map_size(self, input_size: tuple[int, ...]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``, with head and attention counted."""
        attended_sizes = self.stage_sizes(input_size)[self.first_attended_stage :]
        return super().compute_conv_feature_map_size(input_size) + sum(
            refine.compute_conv_feature_map_size(size)  # type: ignore[operator]
            for refine, size in zip(self.refinements, attended_sizes, strict=True)
        )


class LargeKernelMultiTaskPlainConvUNet(_AttendedMixin, PlainConvUNet):
    """nnU-Net's standard U-Net with large kernel attention and a classification head."""

    refinement_class = LargeKernelRefinement


class LargeKernelMultiTaskResidualEncoderUNet(_AttendedMixin, ResidualEncoderUNet):
    """nnU-Net's residual-encoder U-Net with large kernel attention and a classification head."""

    refinement_class = LargeKernelRefinement


class MaskedAttentionMultiTaskPlainConvUNet(_AttendedMixin, PlainConvUNet):
    """nnU-Net's standard U-Net with adaptive masked attention and a classification head."""

    refinement_class = MaskedAttentionRefinement


class MaskedAttentionMultiTaskResidualEncoderUNet(_AttendedMixin, ResidualEncoderUNet):
    """nnU-Net's residual-encoder U-Net with adaptive masked attention and a classification head."""

    refinement_class = MaskedAttentionRefinement


def large_kernel_network_class(network_class_name: str) -> type[nn.Module]:
    """As :func:`~braintum.architectures.networks.multi_task_unet.multi_task_network_class`,
    with large kernel attention."""
    return stock_counterpart(
        network_class_name, LargeKernelMultiTaskPlainConvUNet, LargeKernelMultiTaskResidualEncoderUNet
    )


def masked_attention_network_class(network_class_name: str) -> type[nn.Module]:
    """As :func:`~braintum.architectures.networks.multi_task_unet.multi_task_network_class`,
    with adaptive masked attention."""
    return stock_counterpart(
        network_class_name, MaskedAttentionMultiTaskPlainConvUNet, MaskedAttentionMultiTaskResidualEncoderUNet
    )
