"""Attention U-Net of paper 001 (section II-D, b): a U-Net whose skips pass additive attention gates."""

from types import SimpleNamespace
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import nn

from braintum.architectures.blocks.attention_gate import AttentionGate
from braintum.architectures.plan_topology import plain_arch_kwargs, topology_for_decoder


class AttentionGateDecoder(UNetDecoder):
    """nnU-Net's decoder; each skip is weighted by the features of the level below before it is concatenated.

    Args:
        topology: see :func:`braintum.architectures.plan_topology.topology_for_decoder`.
        num_classes: segmentation heads.
        n_conv_per_stage: convolutions of each level, lowest resolution first.
        deep_supervision: return a list of segmentations.
    """

    def __init__(
        self, topology: SimpleNamespace, num_classes: int, n_conv_per_stage: Any, deep_supervision: bool
    ) -> None:
        super().__init__(topology, num_classes, n_conv_per_stage, deep_supervision)
        features, strides = topology.output_channels, topology.strides
        self.gates = nn.ModuleList(
            AttentionGate(topology.conv_op, features[level - 1], features[level], strides[level])
            for level in range(len(features) - 1, 0, -1)
        )

    def forward(self, skips: list[torch.Tensor]) -> Any:
        """Segmentation logits from encoder features, highest resolution first."""
        x = skips[-1]
        segmentations = []
        for skip, gate, upsample, stage, head in zip(
            skips[-2::-1], self.gates, self.transpconvs, self.stages, self.seg_layers, strict=True
        ):
            x = stage(torch.cat((upsample(x), gate(skip, x)), 1))
            if self.deep_supervision:
                segmentations.append(head(x))
        return segmentations[::-1] if self.deep_supervision else self.seg_layers[-1](x)

    def compute_conv_feature_map_size(self, input_size: Any) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``, with the gates counted."""
        total = int(super().compute_conv_feature_map_size(input_size))
        size = list(input_size)
        gate: Any
        for stride, gate in zip(self.encoder.strides, reversed(self.gates), strict=False):  # no gate at the bottleneck
            size = [edge // step for edge, step in zip(size, stride, strict=True)]
            total += gate.compute_conv_feature_map_size(size)
        return total


class AttentionUNet(PlainConvUNet):
    """Attention U-Net on the topology of any plan.

    Args:
        **arch_kwargs: ``input_channels``, ``num_classes``, ``deep_supervision`` and a plan's ``arch_kwargs``, see
            :func:`braintum.architectures.plan_topology.plain_arch_kwargs`.
    """

    def __init__(self, **arch_kwargs: Any) -> None:
        plain = plain_arch_kwargs(arch_kwargs)
        super().__init__(**plain)
        self.decoder = AttentionGateDecoder(
            topology_for_decoder(self.encoder),
            plain["num_classes"],
            plain["n_conv_per_stage_decoder"],
            plain.get("deep_supervision", False),
        )
