"""TransUNet (Chen et al. 2021, https://arxiv.org/abs/2102.04306): R50-ViT-B/16 and the cascaded upsampler; 2-D.

ResNet and ViT are timm's, in the version of the hybrid ViT of Dosovitskiy et al. that the paper takes; the position
embedding is interpolated for other sizes than 256 x 256. The upsampler is written here. Ours starts from random
weights, the paper from ImageNet-21k's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from braintum.architectures.baselines.baseline import BaselineNetwork, check_2d

_GRID = 16  # positions along an edge of the embedding: 256 x 256 pixels, of which a token has 16 x 16


class HybridEncoder(nn.Module):
    """A ResNet to a sixteenth of the resolution, and a ViT on its feature map."""

    def __init__(
        self,
        input_channels: int,
        blocks: Sequence[int],
        stem_width: int,
        stage_widths: Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.resnet = ResNetV2(
            layers=list(blocks),
            channels=tuple(stage_widths),
            stem_chs=stem_width,
            num_classes=0,
            global_pool="",
            in_chans=input_channels,
            preact=False,
            stem_type="same",
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.transformer = VisionTransformer(
            img_size=_GRID,
            patch_size=1,
            in_chans=stage_widths[-1],
            num_classes=0,
            global_pool="",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            class_token=False,
            dynamic_img_size=True,
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps at a half, quarter and eighth of the resolution, and the ViT's at a sixteenth."""
        stem: Any = self.resnet.stem
        maps = [stem.norm(stem.conv(x))]
        x = stem.pool(maps[0])
        for stage in self.resnet.stages:
            x = stage(x)
            maps.append(x)
        tokens = self.transformer.forward_features(x)  # (B, N, embed_dim)
        return [*maps[:-1], tokens.transpose(1, 2).unflatten(2, x.shape[2:])]


class CascadedUpsampler(nn.Module):
    """From the ViT's map to full resolution: each step doubles it, adds a skip, and convolves twice."""

    def __init__(self, features: Sequence[int], bottleneck: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.bottleneck = _convolution(features[-1], bottleneck)
        skips = [*features[-2::-1], 0]
        self.steps = nn.ModuleList(
            nn.Sequential(_convolution(before + skip, after), _convolution(after, after))
            for before, skip, after in zip([bottleneck, *channels[:-1]], skips, channels, strict=True)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, channels[-1], Y, X), at the image's resolution."""
        x = self.bottleneck(features[-1])
        for step, skip in zip(self.steps, [*features[-2::-1], None], strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = step(x if skip is None else torch.cat([x, skip], 1))
        return x


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True))


class TransUNet(BaselineNetwork):
    """See the module; the defaults are the paper's.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        blocks: of each stage of the ResNet.
        stem_width: channels of its first convolution.
        stage_widths: channels of its stages.
        embed_dim: of the ViT.
        depth: of the ViT.
        num_heads: of the ViT.
        bottleneck: channels with which the upsampler begins.
        decoder_channels: of its steps.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        blocks: Sequence[int] = (3, 4, 9),
        stem_width: int = 64,
        stage_widths: Sequence[int] = (256, 512, 1024),
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        bottleneck: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        **plan: Any,
    ) -> None:
        check_2d(conv_op, "TransUNet")
        features = [stem_width, *stage_widths[:-1], embed_dim]
        super().__init__(
            HybridEncoder(input_channels, blocks, stem_width, stage_widths, embed_dim, depth, num_heads),
            CascadedUpsampler(features, bottleneck, decoder_channels),
            nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1),
            features,
            divisor=16,
            conv_op=conv_op,
            **plan,
        )
