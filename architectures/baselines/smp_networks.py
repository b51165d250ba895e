"""DeepLabV3+, UPerNet and SegFormer: decoders of segmentation_models_pytorch on backbones of timm; 2-D.

- DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611) on ResNet-50 with an output stride of 16.
- UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221) on ConvNeXt-T, as the latter's authors segment with it
  (Liu et al. 2022, https://arxiv.org/abs/2201.03545), without their auxiliary head.
- SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203): its decoder on PVT v2-B2, which is of one kind with the
  paper's encoder; that one's code and weights are licensed for research only.

They start from random weights. Batch normalisation is as in the papers, save that one value a channel is not normalised
by itself: a batch of one can be trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from braintum.architectures.baselines.baseline import BaselineNetwork, check_2d, with_safe_batch_norm

try:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
except ModuleNotFoundError as error:
    raise ImportError(
        "DeepLabV3+, UPerNet and SegFormer need segmentation_models_pytorch; install it with: "
        "pip install braintum[baselines]"
    ) from error

_DEPTH = 5
"""Halvings, as segmentation_models_pytorch counts them."""
_DIVISOR = 32


class _Backbone(nn.Module):
    """The last four feature maps of a backbone, from a quarter of the resolution on."""

    def __init__(self, name: str, input_channels: int, **options: Any) -> None:
        super().__init__()
        created: Any = timm.create_model(name, features_only=True, pretrained=False, in_chans=input_channels, **options)
        self.model = created
        self.channels: list[int] = created.feature_info.channels()[-4:]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.model(x)[-4:]


class _Decoder(nn.Module):
    """A decoder that expects two more maps before those four, of the image and at half its resolution."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        batch, _, height, width = features[0].shape
        absent = [features[0].new_empty(batch, 0, scale * height, scale * width) for scale in (4, 2)]
        return self.decoder([*absent, *features])


class _OnBackbone(BaselineNetwork):
    """A decoder on a backbone.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        backbone: of timm, with four feature maps from a quarter of the resolution on; None for the network's own.
        width: channels that the decoder ends with; None for the network's own.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    title: str
    own_backbone: str
    own_width: int
    backbone_options: Mapping[str, Any] = {}

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        backbone: str | None = None,
        width: int | None = None,
        **plan: Any,
    ) -> None:
        check_2d(conv_op, self.title)
        width = width or self.own_width
        encoder = _Backbone(backbone or self.own_backbone, input_channels, **self.backbone_options)
        decoder = _Decoder(self.decoder_of([0, 0, *encoder.channels], width))
        output = nn.Conv2d(width, num_classes, 1)
        super().__init__(encoder, decoder, output, encoder.channels, _DIVISOR, conv_op=conv_op, **plan)
        with_safe_batch_norm(self)

    @staticmethod
    def decoder_of(channels: list[int], width: int) -> nn.Module:
        """The decoder for feature maps of so many channels."""
        raise NotImplementedError


class DeepLabV3Plus(_OnBackbone):
    """See the module, and for its arguments the base class."""

    title, own_backbone, own_width = "DeepLabV3+", "resnet50", 256
    backbone_options = {"output_stride": 16, "out_indices": (1, 2, 3, 4)}

    @staticmethod
    def decoder_of(channels: list[int], width: int) -> nn.Module:
        """With an output stride of 16."""
        return DeepLabV3PlusDecoder(channels, _DEPTH, width, (12, 24, 36), 16, True, 0.5)


class UPerNet(_OnBackbone):
    """See the module, and for its arguments the base class."""

    title, own_backbone, own_width = "UPerNet", "convnext_tiny", 512

    @staticmethod
    def decoder_of(channels: list[int], width: int) -> nn.Module:
        """Without the auxiliary head."""
        return UPerNetDecoder(channels, _DEPTH, width)


class SegFormer(_OnBackbone):
    """See the module, and for its arguments the base class."""

    title, own_backbone, own_width = "SegFormer", "pvt_v2_b2", 768

    @staticmethod
    def decoder_of(channels: list[int], width: int) -> nn.Module:
        """The paper's."""
        return SegformerDecoder(channels, _DEPTH, width)
