"""Classification head on multi-stage encoder features with tumour-weighted pooling.

BrainTumNet (paper 000) classifies "tumour-region features obtained from the segmentation result". This head takes
that idea to any encoder: at each of the deepest stages the features are averaged twice, once weighted with the
predicted tumour probability (what does the tumour look like) and once over the whole patch (where is it, and is
there anything at all), and an MLP reads both. The probability map is detached: the class loss shapes the features, not
the mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from braintum.architectures.blocks.averaging import average_to
from braintum.architectures.blocks.dense_gradients import with_dense_gradient


def tumour_probability(segmentation_logits: torch.Tensor, sigmoid_segmentation: bool) -> torch.Tensor:
    """Probability of any tumour per voxel, in float32.

    Args:
        segmentation_logits: (B, C, [Z,] Y, X), raw.
        sigmoid_segmentation: True for region-based training (one sigmoid a region, their union counts); False for
            exclusive labels (softmax; one minus background counts).

    Returns:
        (B, 1, [Z,] Y, X) in [0, 1].
    """
    logits = segmentation_logits.float()
    if sigmoid_segmentation:
        return torch.sigmoid(logits).amax(1, keepdim=True)
    return 1 - torch.softmax(logits, 1)[:, :1]


def part_probabilities(
    segmentation_logits: torch.Tensor, parts: Sequence[Sequence[int]], sigmoid_segmentation: bool
) -> list[torch.Tensor]:
    """Probability of each part of the tumour per voxel, in float32.

    Args:
        segmentation_logits: (B, C, [Z,] Y, X), raw.
        parts: the channels, labels (softmax) or regions (sigmoid), that make up each part.
        sigmoid_segmentation: see :func:`tumour_probability`.

    Returns:
        (B, 1, [Z,] Y, X) in [0, 1] for each part.
    """
    logits = segmentation_logits.float()
    if sigmoid_segmentation:
        return [torch.sigmoid(logits[:, list(channels)]).amax(1, keepdim=True) for channels in parts]
    probabilities = torch.softmax(logits, 1)
    return [probabilities[:, list(channels)].sum(1, keepdim=True) for channels in parts]


class TumourWeightedClassificationHead(nn.Module):
    """Tumour type from encoder features and the predicted segmentation.

    All parameters lie under ``seg_layers``: nnU-Net's ``-pretrained_weights`` exempts exactly the keys with
    ``.seg_layers.`` in them, so a segmentation-only checkpoint warm-starts a network with this head.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        features_per_stage: channels of all encoder stages, highest resolution first.
        num_tumour_classes: number of tumour types.
        num_stages: how many of the deepest stages are read; never the first of several, at full resolution.
        projected_features: channels that each stage is projected to before pooling.
        hidden_features: width of the MLP.
        dropout: dropout rate before each linear layer.
        sigmoid_segmentation: see :func:`tumour_probability`.
        background_weight: weight of a voxel that is surely not tumour in the tumour-weighted mean; where no tumour is
            predicted that mean so becomes the plain one.
    """

    reads_segmentation = True  # so that it can be shown a part of the tumour only, see from_probability

    def __init__(
        self,
        conv_op: Any,
        features_per_stage: Sequence[int],
        num_tumour_classes: int,
        num_stages: int = 4,
        projected_features: int = 64,
        hidden_features: int = 128,
        dropout: float = 0.2,
        sigmoid_segmentation: bool = False,
        background_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        if num_tumour_classes < 2:
            raise ValueError(f"a classifier needs two classes at least, got {num_tumour_classes}")
        self.num_stages = max(1, min(num_stages, len(features_per_stage) - 1))
        self.projected_features = projected_features
        self.sigmoid_segmentation = sigmoid_segmentation
        self.background_weight = background_weight
        self.detaches_segmentation = True  # an explanation of the class follows it through the segmentation as well
        pooled_features = 2 * self.num_stages * projected_features
        self.seg_layers: Any = nn.ModuleDict(
            {
                "project": nn.ModuleList(
                    nn.Sequential(
                        conv_op(features, projected_features, 1, bias=False),
                        nn.GroupNorm(min(8, projected_features), projected_features),
                        nn.GELU(),
                    )
                    for features in features_per_stage[-self.num_stages :]
                ),
                "classify": nn.Sequential(
                    nn.LayerNorm(pooled_features),
                    nn.Dropout(dropout),
                    nn.Linear(pooled_features, hidden_features),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Linear(hidden_features, num_tumour_classes),
                ),
            }
        )

    def forward(self, skips: Sequence[torch.Tensor], segmentation_logits: torch.Tensor) -> torch.Tensor:
        """Class logits.

        Args:
            skips: encoder features (B, C_s, [Z_s,] Y_s, X_s), highest resolution first.
            segmentation_logits: (B, C, [Z,] Y, X) at full resolution.

        Returns:
            (B, num_tumour_classes) in float32.
        """
        if self.detaches_segmentation:
            segmentation_logits = segmentation_logits.detach()
        return self.from_probability(skips, tumour_probability(segmentation_logits, self.sigmoid_segmentation))

    def from_probability(self, skips: Sequence[torch.Tensor], tumour: torch.Tensor) -> torch.Tensor:
        """Class logits from what is tumour, all of it or a part.

        Args:
            skips: as for :meth:`forward`.
            tumour: (B, 1, [Z,] Y, X), probability at full resolution.

        Returns:
            (B, num_tumour_classes) in float32.
        """
        pooled = []
        for features, project in zip(skips[-self.num_stages :], self.seg_layers["project"], strict=True):
            projected = with_dense_gradient(project(features)).float()
            tumour = average_to(tumour, projected.shape[2:])  # from stage to stage, so that it is cheap
            weight = (tumour + self.background_weight).flatten(2)  # (B, 1, N)
            projected = projected.flatten(2)  # (B, F, N)
            pooled.append((projected * weight).sum(2) / weight.sum(2))
            pooled.append(projected.mean(2))
        with torch.autocast(tumour.device.type, enabled=False):
            return self.seg_layers["classify"](torch.cat(pooled, 1))

    def compute_conv_feature_map_size(self, stage_sizes: Sequence[Sequence[int]]) -> int:
        """Feature map elements that this head adds, in the unit of nnU-Net's memory estimate.

        Args:
            stage_sizes: spatial size of every encoder stage, highest resolution first.
        """
        sizes = list(stage_sizes)[-self.num_stages :]
        return sum(self.projected_features * int(torch.Size(size).numel()) for size in sizes)
