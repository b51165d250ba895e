"""Swin-Unet (Cao et al. 2021, https://arxiv.org/abs/2105.05537): a U-Net of Swin transformer blocks alone; 2-D.

Blocks, patch embedding and patch merging are MONAI's; patch expanding is written here. The paper's skips are what each
stage is given, not what it makes. Ours starts from random weights, the paper from ImageNet's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from torch import nn

from braintum.architectures.baselines.baseline import BaselineNetwork, check_2d

_PATCH = 4


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, [Z,] Y, X)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PatchExpanding(nn.Module):
    """Each position becomes ``scale`` x ``scale`` ones, by a linear layer without bias and a layer normalisation.

    Args:
        features: channels before.
        expanded: channels after.
        scale: of the resolution.
    """

    def __init__(self, features: int, expanded: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Conv2d(features, expanded * scale**2, 1, bias=False)
        self.norm = ChannelNorm(expanded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, features, Y, X) to (B, expanded, scale Y, scale X)."""
        return self.norm(nn.functional.pixel_shuffle(self.expand(x), self.scale))


def swin_stage(
    features: int, num_heads: int, window: Sequence[int], drop_path: Sequence[float], merges: bool
) -> BasicLayer:
    """Swin's blocks on (B, features, [Z,] Y, X), with patch merging behind them if wanted.

    Args:
        features: channels.
        num_heads: of the attention.
        window: its edges, [Z,] Y, X.
        drop_path: rate of each block.
        merges: halve the resolution and double the channels at the end.
    """
    merging: Any = PatchMergingV2 if merges else None
    rates = list(drop_path)
    return BasicLayer(features, len(rates), num_heads, window, rates, qkv_bias=True, downsample=merging)


class SwinEncoder(nn.Module):
    """Swin's stages; the last one does not merge patches."""

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        rates: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        self.embed = PatchEmbed(_PATCH, input_channels, features[0], nn.LayerNorm, 2)
        last = len(features) - 1
        self.stages = nn.ModuleList(
            swin_stage(features[index], num_heads[index], (window, window), rates[index], index < last)
            for index in range(len(features))
        )
        self.norm = ChannelNorm(features[-1])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each stage but the last is given, and what that makes."""
        x = self.embed(x)
        maps = []
        for stage in self.stages:
            maps.append(x)
            x = stage(x)
        return [*maps[:-1], self.norm(x)]


class SwinDecoder(nn.Module):
    """Patch expanding, a skip, and Swin blocks, level by level; at last to full resolution at once."""

    def __init__(
        self,
        features: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        rates: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        levels = range(len(features) - 2, -1, -1)
        self.expand = nn.ModuleList(PatchExpanding(features[level + 1], features[level], 2) for level in levels)
        self.fuse = nn.ModuleList(nn.Conv2d(2 * features[level], features[level], 1) for level in levels)
        self.stages = nn.ModuleList(
            swin_stage(features[level], num_heads[level], (window, window), rates[level], False) for level in levels
        )
        self.norm = ChannelNorm(features[0])
        self.last = PatchExpanding(features[0], features[0], _PATCH)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, features, Y, X), at the image's resolution."""
        x = features[-1]
        for expand, fuse, stage, skip in zip(self.expand, self.fuse, self.stages, features[-2::-1], strict=True):
            x = stage(fuse(torch.cat([expand(x), skip], 1)))
        return self.last(self.norm(x))


class SwinUNet(BaselineNetwork):
    """See the module; the defaults are the paper's, those of Swin-T with two blocks in its third stage.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        embed_dim: channels of the first stage; each next one doubles them.
        depths: blocks of each stage, down and up.
        num_heads: of each stage.
        window: positions along an edge of the windows.
        drop_path: rate of the last block of the encoder, rising linearly; the decoder's mirror them.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.2,
        **plan: Any,
    ) -> None:
        check_2d(conv_op, "Swin-Unet")
        features = [embed_dim * 2**level for level in range(len(depths))]
        rise, rates = drop_path / max(1, sum(depths) - 1), []
        for stage, depth in enumerate(depths):
            rates.append([rise * (sum(depths[:stage]) + block) for block in range(depth)])
        super().__init__(
            SwinEncoder(input_channels, features, num_heads, window, rates),
            SwinDecoder(features, num_heads, window, rates),
            nn.Conv2d(embed_dim, num_classes, 1, bias=False),
            features,
            divisor=_PATCH * 2 ** (len(depths) - 1),
            conv_op=conv_op,
            **plan,
        )
