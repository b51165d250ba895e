"""SwinUNETR and MedNeXt, of MONAI's parts, in 2-D and 3-D.

- SwinUNETR (Hatamizadeh et al. 2022, https://arxiv.org/abs/2201.01266): a Swin encoder, and UNETR's decoder. MONAI's
  own class cannot be built without memory for its weights, by which a model's size is checked; patches are merged in
  the order of its "mergingv2".
- MedNeXt (Roy et al. 2023, https://arxiv.org/abs/2303.09975): a U-Net of ConvNeXt blocks, which up- and downsample too.
  The paper supervises lower resolutions by outputs of their own; here they are averages, as of all these networks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import PatchEmbed, UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt
from torch import nn

from braintum.architectures.baselines.baseline import BaselineNetwork, spatial_dims
from braintum.architectures.baselines.swin_unet import ChannelNorm, swin_stage

_PATCH, _WINDOW = 2, 7


class _SwinUNETREncoder(nn.Module):
    """The image as features, as UNETR skips it, and the normalised maps that Swin's stages are given or make."""

    def __init__(
        self, dimensions: int, input_channels: int, features: int, depths: Sequence[int], num_heads: Sequence[int]
    ) -> None:
        super().__init__()
        self.image = _convolved(dimensions, input_channels, features)
        norm: Any = None  # MONAI's annotation forgets it
        self.embed = PatchEmbed(_PATCH, input_channels, features, norm, dimensions)
        self.stages = nn.ModuleList(
            swin_stage(features * 2**index, heads, (_WINDOW,) * dimensions, [0.0] * depth, True)
            for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
        )
        self.norms = nn.ModuleList(
            ChannelNorm(features * 2**index, elementwise_affine=False) for index in range(len(depths) + 1)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.embed(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1].contiguous()))
        return [self.image(x), *(norm(each) for norm, each in zip(self.norms, maps, strict=True))]


class _SwinUNETRDecoder(nn.Module):
    """UNETR's decoder; the second deepest map is a skip as it is, and the image's features are convolved already."""

    def __init__(self, dimensions: int, features: Sequence[int]) -> None:
        super().__init__()
        as_they_are = (0, len(features) - 2)
        self.convolve = nn.ModuleList(
            nn.Identity() if index in as_they_are else _convolved(dimensions, channels, channels)
            for index, channels in enumerate(features)
        )
        self.steps = nn.ModuleList(
            UnetrUpBlock(dimensions, low, high, 3, 2, "instance", res_block=True)
            for low, high in zip(features[:0:-1], features[-2::-1], strict=True)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        *skips, x = [convolve(maps) for convolve, maps in zip(self.convolve, features, strict=True)]
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            x = step(x, skip)
        return x


def _convolved(dimensions: int, before: int, after: int) -> nn.Module:
    return UnetrBasicBlock(dimensions, before, after, 3, 1, "instance", res_block=True)


class SwinUNETR(BaselineNetwork):
    """See the module; the defaults are those of the paper on BraTS.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        feature_size: channels of the first stage, divisible by the heads.
        depths: blocks of each stage.
        num_heads: of each stage.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        **plan: Any,
    ) -> None:
        features = [feature_size, *(feature_size * 2**level for level in range(len(depths) + 1))]
        dimensions = spatial_dims(conv_op)
        super().__init__(
            _SwinUNETREncoder(dimensions, input_channels, feature_size, depths, num_heads),
            _SwinUNETRDecoder(dimensions, features),
            conv_op(feature_size, num_classes, 1),
            features,
            divisor=_PATCH * 2 ** len(depths),
            conv_op=conv_op,
            **plan,
        )


class _MedNeXtEncoder(nn.Module):
    def __init__(self, network: MonaiMedNeXt) -> None:
        super().__init__()
        self.stem = network.stem
        self.stages = nn.ModuleList([*network.enc_stages, network.bottleneck])
        self.merges = network.down_blocks

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.stages[0](self.stem(x))]
        for merge, stage in zip(self.merges, list(self.stages)[1:], strict=True):
            maps.append(stage(merge(maps[-1])))
        return maps


class _MedNeXtDecoder(nn.Module):
    def __init__(self, network: MonaiMedNeXt) -> None:
        super().__init__()
        self.expand, self.stages = network.up_blocks, network.dec_stages

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        x = features[-1]
        for expand, stage, skip in zip(self.expand, self.stages, features[-2::-1], strict=True):
            x = stage(expand(x) + skip)
        return x


class MedNeXt(BaselineNetwork):
    """See the module; the defaults are those of the paper's MedNeXt-B with kernels of 3.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        filters: channels of the first stage; each next one doubles them.
        blocks: of each stage down; those up mirror them.
        bottleneck_blocks: of the deepest stage.
        expansion: of the channels within the blocks of each stage.
        bottleneck_expansion: likewise, of the deepest stage.
        kernel: along an edge.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        filters: int = 32,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck_blocks: int = 2,
        expansion: Sequence[int] = (2, 3, 4, 4),
        bottleneck_expansion: int = 4,
        kernel: int = 3,
        **plan: Any,
    ) -> None:
        network = MonaiMedNeXt(
            spatial_dims(conv_op),
            filters,
            input_channels,
            num_classes,
            list(expansion),
            list(expansion)[::-1],
            bottleneck_expansion,
            kernel,
            use_residual_connection=True,
            blocks_down=list(blocks),
            blocks_bottleneck=bottleneck_blocks,
            blocks_up=list(blocks)[::-1],
        )
        super().__init__(
            _MedNeXtEncoder(network),
            _MedNeXtDecoder(network),
            network.out_0,
            [filters * 2**level for level in range(len(blocks) + 1)],
            divisor=2 ** len(blocks),
            conv_op=conv_op,
            **plan,
        )
