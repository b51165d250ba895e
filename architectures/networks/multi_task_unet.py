"""nnU-Net's own U-Nets with a classification head.

``forward(x)`` is exactly the stock network's, so stock validation and prediction work; ``forward(x,
with_classes=True)`` also returns class logits. Every stock state-dict key is kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from braintum.architectures.heads.classification_head import TumourWeightedClassificationHead


class MultiTaskMixin(nn.Module):
    """Adds the head to a network with ``encoder`` and ``decoder``.

    Args:
        num_tumour_classes: number of tumour types.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        **topology: what the stock network takes: ``input_channels``, ``num_classes``, ``deep_supervision``, strides, …
    """

    encoder: Any
    decoder: Any

    def __init__(self, *, num_tumour_classes: int, sigmoid_segmentation: bool = False, **topology: Any) -> None:
        super().__init__(**topology)
        self.classification_head = TumourWeightedClassificationHead(
            self.encoder.conv_op,
            self.encoder.output_channels,
            num_tumour_classes,
            sigmoid_segmentation=sigmoid_segmentation,
        )

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Encoder features (B, C, [Z,] Y, X), highest resolution first."""
        return self.encoder(x)

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X).
            with_classes: also return class logits.

        Returns:
            The segmentation as nnU-Net expects it, a tensor or (deep supervision) a list, highest resolution first;
            with ``with_classes`` a pair of it and class logits (B, num_tumour_classes).
        """
        skips = self.encode(x)
        segmentation = self.decoder(skips)
        if not with_classes:
            return segmentation
        full_resolution = segmentation[0] if isinstance(segmentation, (list, tuple)) else segmentation
        return segmentation, self.classification_head(skips, full_resolution)

    def stage_sizes(self, input_size: Sequence[int]) -> list[tuple[int, ...]]:
        """Sizes of the encoder's feature maps for a patch of ``input_size``."""
        sizes = []
        size = list(input_size)
        for stride in self.encoder.strides:
            size = [edge // step for edge, step in zip(size, stride, strict=True)]
            sizes.append(tuple(size))
        return sizes

    def compute_conv_feature_map_size(self, input_size: tuple[int, ...]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``, with the head counted."""
        segmentation = super().compute_conv_feature_map_size(input_size)  # type: ignore[misc]
        return segmentation + self.classification_head.compute_conv_feature_map_size(self.stage_sizes(input_size))


class MultiTaskPlainConvUNet(MultiTaskMixin, PlainConvUNet):
    """nnU-Net's standard U-Net with a classification head."""


class MultiTaskResidualEncoderUNet(MultiTaskMixin, ResidualEncoderUNet):
    """nnU-Net's residual-encoder U-Net with a classification head."""


def multi_task_network_class(network_class_name: str) -> type[nn.Module]:
    """The multi-task counterpart of a stock network.

    Args:
        network_class_name: dotted class path as in nnU-Net's plans; its last part decides, as old plans know the
            classes under other modules.

    Raises:
        NotImplementedError: for a network that has none.
    """
    return stock_counterpart(network_class_name, MultiTaskPlainConvUNet, MultiTaskResidualEncoderUNet)


def stock_counterpart(
    network_class_name: str, plain: type[nn.Module], residual_encoder: type[nn.Module]
) -> type[nn.Module]:
    """``plain`` for nnU-Net's PlainConvUNet, ``residual_encoder`` for its ResidualEncoderUNet.

    Raises:
        NotImplementedError: for another network.
    """
    counterparts = {PlainConvUNet.__name__: plain, ResidualEncoderUNet.__name__: residual_encoder}
    try:
        return counterparts[network_class_name.rpartition(".")[2]]
    except KeyError:
        raise NotImplementedError(
            f"the plans ask for the network {network_class_name}, which has no multi-task counterpart; plan with "
            f"BrainTumPlanner or one of nnU-Net's planners that give {' or '.join(counterparts)}"
        ) from None
