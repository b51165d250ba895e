"""DeepLabV3+, UPerNet and SegFormer: decoders of segmentation_models_pytorch on backbones of timm; 2-D.

- DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611) on ResNet-50 with an output stride of 16.
- UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221) on ConvNeXt-T, as the latter's authors segment with it
  (Liu et al. 2022, https://arxiv.org/abs/2201.03545), without their auxiliary head.
- SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203): its decoder on PVT v2-B2, which is of one kind with the
  paper's encoder; that one's code and weights are licensed for research only.

They start from random weights. Batch normalisation is as in the papers, save that one value a channel is not normalised
by itself: a batch of one can be trained on.
"""

from collections.abc import Sequence
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
        backbone: made for the image's channels.
        decoder: made for the backbone's.
        width: channels that the decoder ends with.
        num_classes: segmentation heads.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.
    """

    def __init__(self, backbone: _Backbone, decoder: nn.Module, width: int, num_classes: int, **plan: Any) -> None:
        output = nn.Conv2d(width, num_classes, 1)
        super().__init__(backbone, _Decoder(decoder), output, backbone.channels, _DIVISOR, **plan)
        with_safe_batch_norm(self)


class DeepLabV3Plus(_OnBackbone):
    """See the module.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        backbone: a ResNet of timm.
        width: channels of the decoder.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        backbone: str = "resnet50",
        width: int = 256,
        **plan: Any,
    ) -> None:
        check_2d(conv_op, "DeepLabV3+")
        encoder = _Backbone(backbone, input_channels, output_stride=16, out_indices=(1, 2, 3, 4))
        decoder = DeepLabV3PlusDecoder([0, 0, *encoder.channels], _DEPTH, width, (12, 24, 36), 16, True, 0.5)
        super().__init__(encoder, decoder, width, num_classes, conv_op=conv_op, **plan)


class UPerNet(_OnBackbone):
    """See the module.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        backbone: of timm, with four feature maps from a quarter of the resolution on.
        width: channels of the decoder.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        backbone: str = "convnext_tiny",
        width: int = 512,
        **plan: Any,
    ) -> None:
        check_2d(conv_op, "UPerNet")
        encoder = _Backbone(backbone, input_channels)
        decoder = UPerNetDecoder([0, 0, *encoder.channels], _DEPTH, width)
        super().__init__(encoder, decoder, width, num_classes, conv_op=conv_op, **plan)


class SegFormer(_OnBackbone):
    """See the module.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        backbone: of timm, with four feature maps from a quarter of the resolution on.
        width: channels of the decoder.
        **plan: see :class:`~braintum.architectures.baselines.baseline.BaselineNetwork`.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        backbone: str = "pvt_v2_b2",
        width: int = 768,
        **plan: Any,
    ) -> None:
        check_2d(conv_op, "SegFormer")
        encoder = _Backbone(backbone, input_channels)
        decoder = SegformerDecoder([0, 0, *encoder.channels], _DEPTH, width)
        super().__init__(encoder, decoder, width, num_classes, conv_op=conv_op, **plan)
