"""Backbones of timm as encoders, 2-D, and what networks on them share.

The plan says how deep the network is, and the decoder's features, norm and convolutions. The backbone's feature maps
are taken where their resolution is that of a level of the plan; a 1 × 1 convolution brings each to the level's number
of features. Above the backbone's first feature map, at half or a quarter of the image's resolution, there are no
levels: the logits are interpolated, which costs nothing, while convolutions at full resolution are what is slow on a
CPU. Levels below its last one are left out.

Input: each channel of each patch is standardised and then scaled as the backbone's weights expect
(:mod:`braintum.architectures.standardisation`), so that one rule fits every normalisation of nnU-Net's. A backbone is
built with random weights; a trainer loads others, see :mod:`braintum.architectures.weights`. How its first convolution
is adapted from three colours to the plan's channels is timm's own rule: summed for one channel, else repeated.

Import this module where such a network is asked for, not before: timm imports torchvision, which fails to import beside
a torch that was built for other hardware.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.dense_gradients import with_dense_gradient
from braintum.architectures.blocks.depthwise import replace_depthwise
from braintum.architectures.feature_maps import convolution_elements
from braintum.architectures.standardisation import IMAGENET_MEAN, IMAGENET_STD, imagenet_scale_and_offset, standardise
from braintum.architectures.weights.partial_loading import LoadReport, in_order_of, load_matching


class TimmEncoder(nn.Module):
    """Feature maps of a backbone at the resolutions of a plan.

    Args:
        backbone: name in timm, without the tag that names weights.
        input_channels: channels of the image.
        features_per_stage: of the plan.
        strides: of the plan, one list a level.
        norm_op: after the 1 × 1 convolutions; None for none.
        norm_op_kwargs: its arguments.

    Attributes:
        levels: of the plan that have a feature map, counted from 0.
        reductions: by how much each feature map is smaller than the image.
        output_channels: of each feature map.

    Raises:
        NotImplementedError: for a 3-D plan.
        ValueError: timm has no such backbone, it gives no feature maps at two resolutions of the plan, or the plan
            halves one axis more often than the other.
    """

    def __init__(
        self,
        backbone: str,
        input_channels: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        norm_op: Any,
        norm_op_kwargs: dict | None,
    ) -> None:
        super().__init__()
        if any(len(step) != 2 for step in strides):
            raise NotImplementedError(f"{backbone} sees 2-D images; train it with a 2d configuration")
        self.backbone_name = backbone
        if backbone not in timm.list_models():
            raise ValueError(f"timm {timm.__version__} has no model {backbone!r}; timm.list_models() names them")
        shrunk = [list(accumulate(steps, lambda a, b: a * b)) for steps in zip(*strides, strict=True)]
        if any(axis != shrunk[0] for axis in shrunk):
            raise ValueError(
                f"{backbone} halves both axes alike, the plan does not (strides {list(strides)}); plan with square "
                "patches and pixels, as BrainTumPlannerPretrained does"
            )
        level_of = {reduction: level for level, reduction in enumerate(shrunk[0])}
        try:
            whole: Any = timm.create_model(backbone, features_only=True, pretrained=False)
            available = whole.feature_info.reduction()
        except (RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"{backbone} gives no feature maps ({error}); choose another backbone") from error
        taken = [index for index, reduction in enumerate(available) if reduction in level_of]
        self.reductions = [available[index] for index in taken]
        if len(taken) < 2 or len(set(self.reductions)) < len(taken):
            raise ValueError(
                f"{backbone} has feature maps at 1/{', 1/'.join(map(str, available))} of the image's resolution; a "
                f"U-Net on this plan needs two at least of 1/{', 1/'.join(map(str, shrunk[0]))}, each once"
            )
        created: Any = timm.create_model(
            backbone, features_only=True, pretrained=False, in_chans=input_channels, out_indices=taken
        )
        replace_depthwise(created)
        self.backbone: Any = created
        self._freeze_unused(input_channels)
        configuration = timm.get_pretrained_cfg(backbone)
        self.input_scale, self.input_offset = imagenet_scale_and_offset(
            *((IMAGENET_MEAN, IMAGENET_STD) if configuration is None else (configuration.mean, configuration.std))
        )
        self.levels = [level_of[reduction] for reduction in self.reductions]
        self.output_channels = [features_per_stage[level] for level in self.levels]
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, features, 1, bias=norm_op is None),
                *([] if norm_op is None else [norm_op(features, **(norm_op_kwargs or {}))]),
            )
            for channels, features in zip(self.backbone.feature_info.channels(), self.output_channels, strict=True)
        )

    def _freeze_unused(self, input_channels: int) -> None:
        """Some backbones keep the layers below the last feature map that is taken; DDP wants a gradient for each."""
        self.backbone.eval()
        maps = self.backbone(torch.zeros(1, input_channels, *[2 * self.reductions[-1]] * 2))
        torch.stack([features.sum() for features in maps]).sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.backbone.train()

    @property
    def strides(self) -> list[list[int]]:
        """Of each feature map to the one above; of the first, to the image."""
        return [[low // high] * 2 for high, low in zip([1, *self.reductions[:-1]], self.reductions, strict=True)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, highest resolution first, of images (B, C, Y, X)."""
        features = self.backbone(standardise(x, self.input_scale, self.input_offset))
        return [with_dense_gradient(project(maps)) for project, maps in zip(self.projections, features, strict=True)]


class OnTimmBackbone(nn.Module):
    """What networks share whose encoder is a :class:`TimmEncoder`; they set the encoder, a decoder and a head."""

    encoder: TimmEncoder
    decoder: Any
    classification_head: Any

    def set_strides(self, strides: Sequence[Sequence[int]]) -> None:
        """Note what the plan supervises: an output a level, highest resolution first, none at the bottleneck."""
        self.output_reductions = list(accumulate((step[0] for step in strides), lambda a, b: a * b))[:-1]

    def classify(self, skips: Sequence[torch.Tensor], segmentation: torch.Tensor) -> torch.Tensor:
        """Class logits from the encoder's feature maps and the decoder's logits."""
        return self.classification_head(skips, segmentation)

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, Y, X), each axis divisible by the product of its strides.
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).
        """
        skips = self.encoder(x)
        decoded = self.decoder(skips)
        finest = decoded[0] if self.decoder.deep_supervision else decoded
        segmentation: Any = functional.interpolate(finest.float(), size=x.shape[2:], mode="bilinear")
        if self.decoder.deep_supervision:
            segmentation = [segmentation, *self._lower_outputs(decoded, x.shape[2:])]
        return (segmentation, self.classify(skips, finest)) if with_classes else segmentation

    def _lower_outputs(self, decoded: Sequence[torch.Tensor], size: torch.Size) -> list[torch.Tensor]:
        """Logits at the resolutions below the image's that the plan supervises, from those at the decoder's."""
        logits = []
        for reduction in self.output_reductions[1:]:
            finer = [index for index, own in enumerate(self.encoder.reductions[:-1]) if own <= reduction]
            source = decoded[finer[-1] if finer else 0].float()
            edges = [edge // reduction for edge in size]
            if list(source.shape[2:]) != edges:
                source = functional.interpolate(source, size=edges, mode="bilinear", antialias=True)
            logits.append(source)
        return logits

    def load_pretrained(self, weights: Mapping[str, torch.Tensor], in_order: bool = False) -> LoadReport:
        """Load the backbone's weights; decoder and classification head keep their own.

        Args:
            weights: of timm's whole model, or of a file that holds its tensors in timm's order.
            in_order: whether they are such a file's.

        Raises:
            ValueError: they are of another network.
        """
        if in_order:
            weights = in_order_of(list(timm.create_model(self.encoder.backbone_name).state_dict()), weights)
        # timm joins the names of nested modules with underscores where it takes a model apart
        report = load_matching(self.encoder.backbone, weights, lambda name: name.replace(".", "_"))
        if not report.loaded:
            raise ValueError(f"nothing in these weights fits {self.encoder.backbone_name}")
        return report

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``: elements of all convolutions' outputs."""
        return convolution_elements(self, input_size)
