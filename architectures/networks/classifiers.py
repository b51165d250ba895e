"""Standalone classifiers in the shape of nnU-Net's networks.

A classifier segments nothing: its segmentation is background everywhere, so that nnU-Net's training and prediction run
it unchanged, and ``forward(x, with_classes=True)`` returns the class logits besides. The classifier of paper 001 is
here, those on ImageNet features in :mod:`braintum.architectures.networks.torchvision_classifiers`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from braintum.architectures.heads.dense_classification_head import DenseClassificationHead
from braintum.architectures.plan_topology import plain_arch_kwargs

BACKGROUND_LOGIT = 10.0  # softmax(10, -10) leaves 2e-9 for tumour; nnU-Net adds logits up in half precision


class BackgroundDecoder(nn.Module):
    """Segmentation logits that say background everywhere; has no parameters.

    Args:
        num_classes: segmentation heads.
        shrunk_by: for each scale of deep supervision, highest resolution first, how much smaller it is along each axis.
        deep_supervision: return all scales.
        sigmoid_segmentation: True where the heads are regions: then none is background, and all are denied.
    """

    def __init__(
        self,
        num_classes: int,
        shrunk_by: Sequence[Sequence[int]],
        deep_supervision: bool,
        sigmoid_segmentation: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shrunk_by = [tuple(int(factor) for factor in scale) for scale in shrunk_by]
        self.deep_supervision = deep_supervision
        self.sigmoid_segmentation = sigmoid_segmentation

    def _background(self, x: torch.Tensor, shrunk_by: Sequence[int]) -> torch.Tensor:
        size = [edge // factor for edge, factor in zip(x.shape[2:], shrunk_by, strict=True)]
        tumour = x.new_full((x.shape[0], self.num_classes, *size), -BACKGROUND_LOGIT)
        if self.sigmoid_segmentation:
            return tumour
        return torch.cat((-tumour[:, :1], tumour[:, 1:]), 1)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits (B, num_classes, [Z,] Y, X), or a list of them, for an image (B, C, [Z,] Y, X)."""
        if self.deep_supervision:
            return [self._background(x, shrunk_by) for shrunk_by in self.shrunk_by]
        return self._background(x, self.shrunk_by[0])


class Classifier(nn.Module):
    """An encoder and a classification head; its segmentation is background.

    Args:
        encoder: gives features (B, C, [Z,] Y, X), or a list of them, deepest last.
        classification_head: gives class logits from the deepest features.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        strides: of the plan; they decide the scales of deep supervision.
        num_classes: segmentation heads.
        deep_supervision: return a list of segmentations.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
    """

    encoder: Any

    def __init__(
        self,
        encoder: nn.Module,
        classification_head: nn.Module,
        conv_op: Any,
        strides: Sequence[int | Sequence[int]],
        num_classes: int,
        deep_supervision: bool,
        sigmoid_segmentation: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        steps = [maybe_convert_scalar_to_list(conv_op, stride) for stride in strides]
        shrunk_by = np.cumprod(np.array(steps), axis=0)[:-1].tolist()  # nnU-Net supervises no bottleneck
        self.decoder = BackgroundDecoder(num_classes, shrunk_by, deep_supervision, sigmoid_segmentation)
        self.classification_head = classification_head

    def deepest_features(self, x: torch.Tensor) -> torch.Tensor:
        """What the classification head reads, (B, C, [Z,] Y, X)."""
        return self.encoder(x)

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Background, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X).
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).
        """
        segmentation = self.decoder(x)
        if not with_classes:
            return segmentation
        return segmentation, self.classification_head(self.deepest_features(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation, for ``network.apply``."""
        InitWeights_He(1e-2)(module)


class UNetEncoderClassifier(Classifier):
    """Standalone classifier of paper 001 (section II-D, c): the U-Net's encoder, global pooling, dense layers.

    Args:
        num_classes: segmentation heads.
        num_tumour_classes: number of tumour types.
        deep_supervision: return a list of segmentations.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        **arch_kwargs: ``input_channels`` and a plan's ``arch_kwargs``, see
            :func:`braintum.architectures.plan_topology.plain_arch_kwargs`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_tumour_classes: int,
        deep_supervision: bool = False,
        sigmoid_segmentation: bool = False,
        **arch_kwargs: Any,
    ) -> None:
        plain = plain_arch_kwargs(arch_kwargs)
        plain.pop("n_conv_per_stage_decoder", None)  # there is none
        encoder = PlainConvEncoder(**plain)
        conv_op = encoder.conv_op
        super().__init__(
            encoder,
            DenseClassificationHead(conv_op, encoder.output_channels[-1], num_tumour_classes),
            conv_op,
            encoder.strides,
            num_classes,
            deep_supervision,
            sigmoid_segmentation,
        )

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``."""
        return int(self.encoder.compute_conv_feature_map_size(input_size))
