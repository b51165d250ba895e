"""What networks of others get to be trained, compared and explained as ours are.

Each is an encoder that gives feature maps, a decoder that makes logits of them, and where there are classes our
classification head on the encoder's maps. An image whose edges the network cannot halve as often as it does is padded
with zeros (the mean, after normalisation), and the logits are cropped. The plan's stages, features and kernels do not
count, for these networks have their own; its strides tell which resolutions nnU-Net's deep supervision asks for, and as
these networks have one output, averages of its logits are given.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.averaging import average_to
from braintum.architectures.feature_maps import convolution_elements
from braintum.architectures.heads.classification_head import TumourWeightedClassificationHead
from braintum.architectures.plan_topology import per_level_and_axis

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class FeatureMaps(nn.Module):
    """An encoder, each of whose feature maps is the output of a module, which explanations hold on to.

    Args:
        body: (B, C, [Z,] Y, X) to feature maps, highest resolution first, and whatever else the decoder needs.
        num_maps: how many tensors that are.
    """

    def __init__(self, body: nn.Module, num_maps: int) -> None:
        super().__init__()
        self.body = body
        self.maps = nn.ModuleList(nn.Identity() for _ in range(num_maps))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, highest resolution first."""
        return [keep(features) for keep, features in zip(self.maps, self.body(x), strict=True)]


class SegmentationDecoder(nn.Module):
    """A decoder with its output layer where nnU-Net looks for such.

    Args:
        body: feature maps to one feature map (B, C, [Z,] Y, X), of any resolution.
        output: makes logits of it.
        deep_supervision: whether the network returns a list.
    """

    def __init__(self, body: nn.Module, output: nn.Module, deep_supervision: bool) -> None:
        super().__init__()
        self.body = body
        self.seg_layers = nn.ModuleList([output])
        self.deep_supervision = deep_supervision

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits."""
        return self.seg_layers[0](self.body(list(features)))


class BaselineNetwork(nn.Module):
    """See the module.

    Args:
        encoder: (B, C, [Z,] Y, X) to feature maps, highest resolution first.
        decoder: feature maps to one.
        output: makes logits of that.
        features: channels of the feature maps.
        divisor: by which the edges of an image have to be divisible; twice that is the least.
        conv_op: of the plan.
        strides: of the plan, one a level.
        further: number of tensors that the encoder hands the decoder behind the feature maps.
        num_tumour_classes: number of tumour types; None for a network that only segments.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        deep_supervision: return a list of segmentations.
        **rest: of the plan's ``arch_kwargs``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        output: nn.Module,
        features: Sequence[int],
        divisor: int,
        conv_op: Any,
        strides: Sequence[Any],
        further: int = 0,
        num_tumour_classes: int | None = None,
        sigmoid_segmentation: bool = False,
        deep_supervision: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__()
        self.encoder = FeatureMaps(encoder, len(features) + further)
        self.num_maps = len(features)
        self.decoder = SegmentationDecoder(decoder, output, deep_supervision)
        self.divisor = divisor
        steps = per_level_and_axis("strides", strides, len(strides), conv_op)
        self.output_reductions = list(accumulate(steps, lambda a, b: [x * y for x, y in zip(a, b, strict=True)]))[:-1]
        if num_tumour_classes is not None:
            self.classification_head = TumourWeightedClassificationHead(
                conv_op, features, num_tumour_classes, sigmoid_segmentation=sigmoid_segmentation
            )

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X), of any size.
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).
        """
        size = x.shape[2:]
        features = self.encoder(self._padded(x))
        logits = self._resized(self.decoder(features), [self._edge(edge) for edge in size])
        crop = (slice(None), slice(None), *(slice(edge) for edge in size))
        segmentation: Any = logits[crop]
        if self.decoder.deep_supervision:
            lower = [
                average_to(segmentation, [edge // step for edge, step in zip(size, reduction, strict=True)])
                for reduction in self.output_reductions[1:]
            ]
            segmentation = [segmentation, *lower]
        if not with_classes:
            return segmentation
        return segmentation, self.classification_head(features[: self.num_maps], logits)

    def _edge(self, edge: int) -> int:
        return max(2, -(-edge // self.divisor)) * self.divisor

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        padding = [number for edge in reversed(x.shape[2:]) for number in (0, self._edge(edge) - edge)]
        return functional.pad(x, padding) if any(padding) else x

    @staticmethod
    def _resized(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        if list(logits.shape[2:]) == list(size):
            return logits
        return functional.interpolate(logits.float(), size=list(size), mode=_INTERPOLATION[len(size)])

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Nothing, for ``network.apply``: the networks draw their weights as their authors do."""

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``: elements of all convolutions' outputs."""
        return convolution_elements(self, input_size)


class SafeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where there is but one value a channel to train on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def with_safe_batch_norm(network: nn.Module) -> nn.Module:
    """The network, its batch normalisations replaced by :class:`SafeBatchNorm2d`."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                safe = SafeBatchNorm2d(child.num_features, child.eps, child.momentum)
                safe.load_state_dict(child.state_dict())
                setattr(module, name, safe)
    return network


def check_2d(conv_op: Any, name: str) -> None:
    """Refuse 3-D plans.

    Raises:
        NotImplementedError: for a 3-D plan.
    """
    if conv_op is not nn.Conv2d:
        raise NotImplementedError(f"{name} sees 2-D images; train it with a 2d configuration")


def spatial_dims(conv_op: Any) -> int:
    """2 or 3, as MONAI asks for it."""
    return 2 if conv_op is nn.Conv2d else 3
