"""MedFormer (Gao et al. 2022, https://arxiv.org/abs/2203.00131): convolutions, and attention to a small semantic map.

In the middle stages every position attends to the codes of a semantic map (and they to the positions), so that the cost
grows linearly with the image: bidirectional attention. Each such stage of the encoder generates a map, the maps of all
of them are fused by a transformer, and the decoder goes on with them. Written after the paper and its public code, with
the sizes of that code's configuration for 2-D MRI (ACDC). Settled: the last block leaves its map alone, since nobody
reads it; corners are not aligned in upsampling; there is no auxiliary output.

A map is held as codes, (B, channels, codes).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional

from braintum.architectures.baselines.baseline import BaselineNetwork, spatial_dims

_BATCH_NORM: dict[Any, Any] = {nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
_Blocks = tuple[int, int, int]
"""Of a level: its residual blocks, its attention blocks, and the heads of these."""


def _normalised(conv_op: Any, before: int, after: int, kernel: int, groups: int = 1, activated: bool = True) -> Any:
    """Batch normalisation, GELU and a convolution, in this order."""
    convolution = conv_op(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(_BATCH_NORM[conv_op](before), *([nn.GELU()] if activated else []), convolution)


def _separable(conv_op: Any, before: int, after: int) -> nn.Sequential:
    depthwise = conv_op(before, before, 3, padding=1, groups=before, bias=False)
    return nn.Sequential(depthwise, conv_op(before, after, 1, bias=False))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, conv_op: Any, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(_normalised(conv_op, features, features, 3) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class _InvertedBottleneck(nn.Module):
    """MBConv: expanded, convolved by channel, weighted by squeeze and excitation, and projected back."""

    def __init__(self, conv_op: Any, features: int, expansion: int) -> None:
        super().__init__()
        expanded = expansion * features
        self.expand = nn.Sequential(
            _normalised(conv_op, features, expanded, 1), _normalised(conv_op, expanded, expanded, 3, expanded)
        )
        squeezed = max(1, expanded // 4)
        self.excite = nn.Sequential(
            nn.Linear(expanded, squeezed), nn.ReLU(), nn.Linear(squeezed, expanded), nn.Sigmoid()
        )
        self.project = _normalised(conv_op, expanded, features, 1, activated=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expanded = self.expand(x)
        weights = self.excite(expanded.flatten(2).mean(2))
        return x + self.project(expanded * weights.reshape(*weights.shape, *(1 for _ in x.shape[2:])))


class BidirectionalAttention(nn.Module):
    """Positions attend to the codes of a map, and the codes to the positions, by one matrix of similarities.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        features: channels of positions and codes.
        num_heads: of the attention.
        updates_map: whether the codes attend too.
    """

    def __init__(self, conv_op: Any, features: int, num_heads: int, updates_map: bool) -> None:
        super().__init__()
        self.num_heads, self.updates_map = num_heads, updates_map
        self.of_positions = _separable(conv_op, features, (2 if updates_map else 1) * features)
        self.of_codes = nn.Conv1d(features, 2 * features, 1, bias=False)
        self.positions_out = _separable(conv_op, features, features)
        self.codes_out = nn.Conv1d(features, features, 1, bias=False) if updates_map else nn.Identity()

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be added to positions (B, C, [Z,] Y, X) and codes (B, C, M)."""
        query, *values = (self._heads(part) for part in self._split(self.of_positions(x).flatten(2)))
        key, code_value = (self._heads(part) for part in self.of_codes(codes).chunk(2, 1))
        similarity = query.transpose(2, 3) @ key * key.shape[2] ** -0.5  # (B, heads, N, M)
        found = code_value @ similarity.softmax(3).transpose(2, 3)  # (B, heads, d, N)
        positions = self.positions_out(found.flatten(1, 2).reshape(x.shape))
        if not self.updates_map:
            return positions, torch.zeros_like(codes)
        collected = values[0] @ similarity.softmax(2)  # (B, heads, d, M)
        return positions, self.codes_out(collected.flatten(1, 2))

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.chunk(2, 1) if self.updates_map else (x,)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (self.num_heads, -1))  # (B, heads, d, N)


class _AttentionBlock(nn.Module):
    def __init__(self, conv_op: Any, features: int, num_heads: int, expansion: int, updates_map: bool) -> None:
        super().__init__()
        self.norm, self.map_norm = _BATCH_NORM[conv_op](features), nn.BatchNorm1d(features)
        self.attention = BidirectionalAttention(conv_op, features, num_heads, updates_map)
        self.feed_forward = _InvertedBottleneck(conv_op, features, expansion)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        more, more_codes = self.attention(self.norm(x), self.map_norm(codes))
        return self.feed_forward(x + more), codes + more_codes


class _MapGeneration(nn.Module):
    """Codes as weighted means over all positions, (B, C, M)."""

    def __init__(self, conv_op: Any, features: int, num_codes: int) -> None:
        super().__init__()
        self.value = conv_op(features, features, 3, padding=1, bias=False)
        self.weight = conv_op(features, num_codes, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weight(x).flatten(2).softmax(2)  # (B, M, N)
        return self.value(x).flatten(2) @ weights.transpose(1, 2)


class _MapFusion(nn.Module):
    """A transformer over the codes of all maps."""

    def __init__(self, features: Sequence[int], width: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv1d(channels, width, 1, bias=False) for channels in features)
        self.transformer = nn.Sequential(*(Block(width, num_heads, mlp_ratio=1.0) for _ in range(depth)))
        self.after = nn.ModuleList(nn.Conv1d(width, channels, 1, bias=False) for channels in features)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        codes = torch.cat([project(codes) for project, codes in zip(self.before, maps, strict=True)], 2)
        fused = self.transformer(codes.transpose(1, 2)).transpose(1, 2).chunk(len(maps), 2)
        return [project(codes) for project, codes in zip(self.after, fused, strict=True)]


class _Stage(nn.Module):
    """Attention blocks, and convolutions before (down) or after them (up)."""

    def __init__(
        self,
        conv_op: Any,
        features: int,
        blocks: _Blocks,
        expansion: int,
        last: bool = False,
    ) -> None:
        super().__init__()
        convolutions, attentions, num_heads = blocks
        self.convolutions = nn.Sequential(*(_Residual(conv_op, features) for _ in range(convolutions)))
        self.attentions = nn.ModuleList(
            _AttentionBlock(conv_op, features, num_heads, expansion, not (last and index == attentions - 1))
            for index in range(attentions)
        )

    def attend(self, x: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.attentions:
            x, codes = block(x, codes)
        return x, codes


class _Encoder(nn.Module):
    def __init__(
        self,
        conv_op: Any,
        input_channels: int,
        features: Sequence[int],
        blocks: Sequence[_Blocks],
        expansion: int,
        num_codes: int,
    ) -> None:
        super().__init__()
        self.dimensions = spatial_dims(conv_op)
        first = conv_op(input_channels, features[0], 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, _Residual(conv_op, features[0]))
        merged = 2**self.dimensions
        self.merge = nn.ModuleList(
            nn.Sequential(_BATCH_NORM[conv_op](merged * before), _separable(conv_op, merged * before, after))
            for before, after in zip(features[:-1], features[1:], strict=True)
        )
        self.stages: Any = nn.ModuleList(
            _Stage(conv_op, channels, of_level, expansion)
            for channels, of_level in zip(features[1:], blocks, strict=True)
        )
        self.maps = nn.ModuleList(
            _MapGeneration(conv_op, channels, num_codes) if attentions else nn.Identity()
            for channels, (_, attentions, _) in zip(features[1:], blocks, strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, highest resolution first, and behind them the semantic maps of the stages that attend."""
        features, codes_of_stages = [self.stem(x)], []
        for merge, stage, generate in zip(self.merge, self.stages, self.maps, strict=True):
            x = stage.convolutions(merge(self._neighbours(features[-1])))
            if len(stage.attentions):
                x, codes = stage.attend(x, generate(x))
                codes_of_stages.append(codes)
            features.append(x)
        return [*features, *codes_of_stages]

    def _neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """Two neighbours along each axis become channels of one position."""
        for axis in range(2, 2 + self.dimensions):
            x = torch.cat(x.unflatten(axis, (-1, 2)).unbind(axis + 1), 1)
        return x


class _Decoder(nn.Module):
    def __init__(
        self,
        conv_op: Any,
        features: Sequence[int],
        blocks: Sequence[_Blocks],
        expansion: int,
        fusion: tuple[int, int, int],
        num_maps: int,
    ) -> None:
        super().__init__()
        self.num_features = len(features)
        self.fusion = _MapFusion(features[-num_maps:], *fusion)
        pairs = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.reduce = nn.ModuleList(
            nn.Sequential(_BATCH_NORM[conv_op](low + high), conv_op(low + high, high, 1, bias=False))
            for low, high in pairs
        )
        attending = [index for index, (_, attentions, _) in enumerate(blocks) if attentions]
        self.reduce_map = nn.ModuleList(
            nn.Conv1d(low + high, high, 1, bias=False) if index in attending else nn.Identity()
            for index, (low, high) in enumerate(pairs)
        )
        self.stages: Any = nn.ModuleList(
            _Stage(conv_op, high, of_level, expansion, last=index == attending[-1])
            for index, ((_, high), of_level) in enumerate(zip(pairs, blocks, strict=True))
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, features[0], [Z,] Y, X), at the image's resolution."""
        maps = self.fusion(features[self.num_features :])
        codes = maps.pop()
        x = features[self.num_features - 1]
        skips = features[self.num_features - 2 :: -1]
        for reduce, reduce_map, stage, skip in zip(self.reduce, self.reduce_map, self.stages, skips, strict=True):
            size = list(skip.shape[2:])
            x = functional.interpolate(x, size=size, mode=_INTERPOLATION[len(size)])
            x = reduce(torch.cat([x, skip], 1))
            if len(stage.attentions):
                codes = reduce_map(torch.cat([codes, maps.pop()], 1))
                x, codes = stage.attend(x, codes)
            x = stage.convolutions(x)
        return x


class MedFormer(BaselineNetwork):
    """See the module; in 2-D and 3-D.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        features: channels of each level, at full resolution first.
        convolutions: residual blocks of each level below the first going down, and of each level going up.
        attentions: attention blocks, likewise.
        num_heads: of these, likewise.
        expansion: of the channels within their feed-forward parts.
        num_codes: of a semantic map.
        fusion: channels, heads and depth of the transformer that fuses the maps.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        features: Sequence[int] = (32, 64, 128, 256, 512),
        convolutions: Sequence[int] = (2, 0, 0, 0, 0, 0, 2, 2),
        attentions: Sequence[int] = (0, 2, 2, 2, 2, 2, 0, 0),
        num_heads: Sequence[int] = (1, 4, 8, 16, 8, 4, 1, 1),
        expansion: int = 2,
        num_codes: int = 9,
        fusion: tuple[int, int, int] = (512, 16, 2),
        **plan: Any,
    ) -> None:
        depth = len(features) - 1
        blocks = list(zip(convolutions, attentions, num_heads, strict=True))
        num_maps = sum(number > 0 for number in attentions[:depth])
        super().__init__(
            _Encoder(conv_op, input_channels, features, blocks[:depth], expansion, num_codes),
            _Decoder(conv_op, features, blocks[depth:], expansion, fusion, num_maps),
            conv_op(features[0], num_classes, 1),
            features,
            divisor=2**depth,
            further=num_maps,
            conv_op=conv_op,
            **plan,
        )
