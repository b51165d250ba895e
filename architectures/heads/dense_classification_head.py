"""Classification head of pooled features and dense layers with dropout, as papers 001 and 003 describe theirs."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn

from braintum.architectures.blocks.averaging import average_to


class DenseClassificationHead(nn.Module):
    """Average pooling, dense layers with ReLU and dropout, class logits.

    Paper 001 (section II-D): global average pooling and dense layers with dropout. It gives neither width nor rate;
    the defaults are ours. Paper 003 (section 2.4): 8×8 features, flattened, dense 512 and 1024, dropout 0.2.

    All parameters lie under ``seg_layers``, which nnU-Net's ``-pretrained_weights`` exempts.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        input_features: channels of the features.
        num_tumour_classes: number of tumour types.
        hidden_features: widths of the hidden dense layers.
        dropout: dropout rate after each hidden layer.
        pooled_edge: the features are pooled to this edge length along each axis, 1 for global pooling.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(
        self,
        conv_op: Any,
        input_features: int,
        num_tumour_classes: int,
        hidden_features: Sequence[int] = (256,),
        dropout: float = 0.5,
        pooled_edge: int = 1,
    ) -> None:
        super().__init__()
        if num_tumour_classes < 2:
            raise ValueError(f"a classifier needs two classes at least, got {num_tumour_classes}")
        self.pooled_size = (pooled_edge,) * convert_conv_op_to_dim(conv_op)
        layers: list[nn.Module] = []
        width = input_features * math.prod(self.pooled_size)
        for hidden in hidden_features:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        self.seg_layers = nn.Sequential(*layers, nn.Linear(width, num_tumour_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Class logits (B, num_tumour_classes) in float32 from features (B, C, [Z,] Y, X)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.seg_layers(average_to(features.float(), self.pooled_size).flatten(1))
