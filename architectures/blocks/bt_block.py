"""BT block: masked attention, self-attention and an MLP, around which convolutional features pass unchanged.

Paper 000 (BrainTumNet, https://doi.org/10.3389/fonc.2025.1585891), section 2.2, names these three parts. Settled here:
three pre-norm residual sub-layers in that order; the MLP is also the feed-forward network of the adaptive masked
transformer. Patch embedding is a 1x1 convolution: a position of a deep encoder level already stands for a patch of the
image. Tokens carry no position of their own, the convolutions before and after see to that.

Self-attention lets every token see the whole image, not only what the masks choose. Its keys and values are averaged
to a grid of at most 16 x 16 (8 x 8 x 8), as in PVT v2 (Wang et al. 2022, https://arxiv.org/abs/2106.13797), so that it
is dense on small grids and the block's cost never grows with the square of the number of tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.adaptive_masked_attention import AdaptiveMaskedAttention
from braintum.architectures.blocks.averaging import average_to

HEAD_FEATURES = 32
_MAX_HEADS = 8
_WINDOW_SIZE = {2: (8, 8), 3: (4, 4, 4)}
_KEY_GRID = {2: (16, 16), 3: (8, 8, 8)}


def num_heads(channels: int) -> int:
    """Attention heads for convolutional features of so many channels."""
    return min(_MAX_HEADS, max(2, channels // HEAD_FEATURES))


def feed_forward(features: int, ratio: int = 2) -> nn.Sequential:
    """The MLP of a transformer, with its norm."""
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, ratio * features),
        nn.GELU(),
        nn.Linear(ratio * features, features),
    )


class SelfAttention(nn.Module):
    """Attention of every token to the whole grid, averaged to ``key_grid`` where it is larger.

    Args:
        features: of a token, divisible by ``heads``.
        heads: attention heads.
        key_grid: largest grid of keys and values, one number an axis.
    """

    def __init__(self, features: int, heads: int, key_grid: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.key_grid = tuple(key_grid)
        self.queries = nn.Linear(features, features)
        self.keys_values = nn.Linear(features, 2 * features)
        self.project = nn.Linear(features, features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, [Z,] Y, X, features) to the same shape."""
        grid = [min(edge, size) for edge, size in zip(self.key_grid, tokens.shape[1:-1], strict=True)]
        averaged = average_to(tokens.movedim(-1, 1), grid).flatten(2).transpose(1, 2)  # (B, K, features)
        queries = self.queries(tokens).flatten(1, -2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.keys_values(averaged).unflatten(-1, (2, self.heads, -1)).unbind(2)
        attended = functional.scaled_dot_product_attention(
            queries, keys.transpose(1, 2), values.transpose(1, 2)
        )  # (B, heads, N, d)
        return self.project(attended.transpose(1, 2).reshape(tokens.shape))


class TransformerLayer(nn.Module):
    """Self-attention and an MLP, each pre-norm and residual.

    Args:
        dimensions: 2 or 3.
        features: of a token, divisible by ``heads``.
        heads: attention heads.
    """

    def __init__(self, dimensions: int, features: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.attention = SelfAttention(features, heads, _KEY_GRID[dimensions])
        self.feed_forward = feed_forward(features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, [Z,] Y, X, features) to the same shape."""
        tokens = tokens + self.attention(self.norm(tokens))
        return tokens + self.feed_forward(tokens)


class BTBlock(nn.Module):
    """Masked attention, self-attention and MLP on convolutional features.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        channels: of input and output, any number.
        low_level_channels: of the low-level features that the masks also depend on.
        num_global_tokens: see :class:`AdaptiveMaskedAttention`.
        num_modalities: likewise.
    """

    def __init__(
        self,
        conv_op: Any,
        channels: int,
        low_level_channels: int,
        num_global_tokens: int = 256,
        num_modalities: int = 0,
    ) -> None:
        super().__init__()
        dimensions = convert_conv_op_to_dim(conv_op)
        heads = num_heads(channels)
        self.features = heads * HEAD_FEATURES
        self.embed = conv_op(channels, self.features, 1)
        self.norm = nn.LayerNorm(self.features)
        self.masked_attention = AdaptiveMaskedAttention(
            self.features,
            low_level_channels,
            heads,
            _WINDOW_SIZE[dimensions],
            num_global_tokens,
            num_modalities=num_modalities,
        )
        self.transformer = TransformerLayer(dimensions, self.features, heads)
        self.restore = conv_op(self.features, channels, 1)

    def forward(self, x: torch.Tensor, low_level: torch.Tensor) -> torch.Tensor:
        """Transform.

        Args:
            x: (B, channels, [Z,] Y, X), high-level features.
            low_level: (B, low_level_channels, …), on the same grid or a finer one.

        Returns:
            (B, channels, [Z,] Y, X).
        """
        low_level = average_to(low_level, x.shape[2:]).movedim(1, -1)
        tokens = self.embed(x).movedim(1, -1)  # (B, *grid, features)
        tokens = tokens + self.masked_attention(self.norm(tokens), low_level)
        return x + self.restore(self.transformer(tokens).movedim(-1, 1))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Elements of the embedding and of queries, keys, values and outputs of both attentions and the MLP."""
        embedded_tokens = 12  # embed 1, masked attention 3 + 1, self-attention 3 + 1, MLP 2 + 1
        return embedded_tokens * self.features * torch.Size(input_size).numel()
