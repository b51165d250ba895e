"""T-InceptionNet: tumour type from tumour-gated features, by parallel convolutions and a transformer.

Paper 000 (BrainTumNet, https://doi.org/10.3389/fonc.2025.1585891), section 2.2: the module "extracts tumor region
features from segmentation results"; several T-Inception blocks with parallel 1x1, 3x3, 1x3 and 3x1 convolutions and a
transformer; pooling, fully connected layer, dropout. Settled here:

- the features are the encoder's deep levels, each multiplied with the predicted probability of tumour, averaged to its
  grid. One block a level: it reads the level and the output of the block before it, averaged to its grid.
- gradients flow through the probability: the paper's network is trained end to end and credits that with a better
  segmentation.
- 3-D has 1x1x1 and 3x3x3 convolutions and one line of three along each axis: 1x1x3, 1x3x1, 3x1x1.
- the last pooling is a mean weighted by the same probability, so that a small tumour is not diluted; where no tumour is
  predicted it becomes the plain mean.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn

from braintum.architectures.blocks.averaging import average_to
from braintum.architectures.blocks.bt_block import HEAD_FEATURES, TransformerLayer, num_heads
from braintum.architectures.heads.classification_head import tumour_probability


class ParallelConvolutions(nn.Module):
    """Convolutions of different kernels side by side; their outputs are concatenated.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        input_channels: of the input.
        branches: output channels and kernel (odd edges, one an axis) of each.
        bias: whether the convolutions have a bias.
    """

    def __init__(
        self, conv_op: Any, input_channels: int, branches: Sequence[tuple[int, Sequence[int]]], bias: bool = True
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            conv_op(input_channels, channels, kernel, padding=[(edge - 1) // 2 for edge in kernel], bias=bias)
            for channels, kernel in branches
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, input_channels, [Z,] Y, X) to (B, sum of the branches' channels, [Z,] Y, X)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception_kernels(dimensions: int) -> list[tuple[int, ...]]:
    """Kernels of a T-Inception block: 1x1, 3x3, 1x3, 3x1, or their 3-D form (see above)."""
    lines = [tuple(3 if axis == along else 1 for axis in range(dimensions)) for along in reversed(range(dimensions))]
    return [(1,) * dimensions, (3,) * dimensions, *lines]


class TInceptionBlock(nn.Module):
    """Parallel convolutions with a shortcut, then a transformer layer.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        input_channels: of the input.
        heads: attention heads; the output has 32 channels each, divided among the branches as evenly as can be.
        use_transformer: False leaves the transformer layer out.
    """

    def __init__(self, conv_op: Any, input_channels: int, heads: int, use_transformer: bool = True) -> None:
        super().__init__()
        dimensions = convert_conv_op_to_dim(conv_op)
        self.output_channels = heads * HEAD_FEATURES
        kernels = inception_kernels(dimensions)
        share, rest = divmod(self.output_channels, len(kernels))
        branches = [(share + (index < rest), kernel) for index, kernel in enumerate(kernels)]
        self.convolutions = nn.Sequential(
            ParallelConvolutions(conv_op, input_channels, branches),
            nn.GroupNorm(1, self.output_channels),  # over all positions together: keeps how strong the gate was where
            nn.GELU(),
        )
        self.shortcut = conv_op(input_channels, self.output_channels, 1)
        self.transformer = (
            TransformerLayer(dimensions, self.output_channels, heads) if use_transformer else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, input_channels, [Z,] Y, X) to (B, output_channels, [Z,] Y, X)."""
        x = self.shortcut(x) + self.convolutions(x)
        return self.transformer(x.movedim(1, -1)).movedim(-1, 1)


class TInceptionNet(nn.Module):
    """Class logits from encoder features and the predicted segmentation.

    All parameters lie under ``seg_layers``, which nnU-Net's ``-pretrained_weights`` exempts.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        level_channels: channels of the encoder levels that it reads, highest resolution first.
        num_tumour_classes: number of tumour types.
        sigmoid_segmentation: see :func:`tumour_probability`.
        dropout: rate before the fully connected layer.
        use_transformer: False leaves the transformers out.
        use_inception: False leaves the blocks out: gated features are pooled as they are.
        background_weight: weight of a position that is surely not tumour in the last pooling.

    Raises:
        ValueError: fewer than two tumour types.
    """

    reads_segmentation = True  # so that it can be shown a part of the tumour only, see from_probability

    def __init__(
        self,
        conv_op: Any,
        level_channels: Sequence[int],
        num_tumour_classes: int,
        sigmoid_segmentation: bool = False,
        dropout: float = 0.2,
        use_transformer: bool = True,
        use_inception: bool = True,
        background_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        if num_tumour_classes < 2:
            raise ValueError(f"a classifier needs two classes at least, got {num_tumour_classes}")
        self.sigmoid_segmentation = sigmoid_segmentation
        self.background_weight = background_weight
        self.level_channels = tuple(level_channels)
        blocks: list[nn.Module] = []
        channels = 0
        for level in level_channels:
            channels += level
            if use_inception:
                block = TInceptionBlock(conv_op, channels, num_heads(level), use_transformer)
                blocks.append(block)
                channels = block.output_channels
            else:
                blocks.append(nn.Identity())
        self.seg_layers: Any = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(blocks),
                "classify": nn.Sequential(
                    nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, num_tumour_classes)
                ),
            }
        )

    def forward(self, levels: Sequence[torch.Tensor], segmentation_logits: torch.Tensor) -> torch.Tensor:
        """Class logits.

        Args:
            levels: (B, C_s, [Z_s,] Y_s, X_s), highest resolution first.
            segmentation_logits: (B, C, [Z,] Y, X) at full resolution.

        Returns:
            (B, num_tumour_classes) in float32.
        """
        return self.from_probability(levels, tumour_probability(segmentation_logits, self.sigmoid_segmentation))

    def from_probability(self, levels: Sequence[torch.Tensor], tumour: torch.Tensor) -> torch.Tensor:
        """Class logits from what is tumour, all of it or a part.

        Args:
            levels: as for :meth:`forward`.
            tumour: (B, 1, [Z,] Y, X), probability at full resolution.

        Returns:
            (B, num_tumour_classes) in float32.
        """
        x: torch.Tensor | None = None
        for level, block in zip(levels, self.seg_layers["blocks"], strict=True):
            tumour = average_to(tumour, level.shape[2:])
            gated = level * tumour.to(level.dtype)
            x = block(gated if x is None else torch.cat((average_to(x, level.shape[2:]), gated), 1))
        weight = (tumour + self.background_weight).flatten(2)  # (B, 1, N)
        pooled = (x.float().flatten(2) * weight).sum(2) / weight.sum(2)  # type: ignore[union-attr]
        with torch.autocast(tumour.device.type, enabled=False):
            return self.seg_layers["classify"](pooled)

    def compute_conv_feature_map_size(self, level_sizes: Sequence[Sequence[int]]) -> int:
        """Elements of convolutions and transformers, in the unit of nnU-Net's memory estimate.

        Args:
            level_sizes: spatial size of each level that it reads.
        """
        total = 0
        for block, size in zip(self.seg_layers["blocks"], level_sizes, strict=True):
            if isinstance(block, TInceptionBlock):
                with_transformer = isinstance(block.transformer, TransformerLayer)
                # convolutions and shortcut 2; self-attention 3 + 1, MLP 2 + 1
                maps = 2 + 7 * with_transformer
                total += maps * block.output_channels * torch.Size(size).numel()
        return total
