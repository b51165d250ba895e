"""U-Net on a pretrained backbone of timm, with nnU-Net's decoder and the classification head; 2-D.

Where its levels come from, and how the input is normalised: :mod:`braintum.architectures.networks.timm_backbone`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from braintum.architectures.heads.classification_head import TumourWeightedClassificationHead
from braintum.architectures.networks.timm_backbone import OnTimmBackbone, TimmEncoder
from braintum.architectures.plan_topology import per_level, per_level_and_axis


class TimmUNet(OnTimmBackbone):
    """U-Net with a timm backbone and a classification head.

    Args:
        backbone: name in timm, without the tag that names weights.
        input_channels: channels of the image.
        num_classes: segmentation heads.
        features_per_stage: channels of each level, highest resolution first.
        conv_op: ``nn.Conv2d``.
        kernel_sizes: of the decoder's convolutions, a level.
        strides: downsampling of each level; both axes alike.
        n_conv_per_stage_decoder: convolutions of each decoder level, lowest resolution first.
        num_tumour_classes: number of tumour types.
        conv_bias: whether convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
        dropout_op: dropout class, None for none.
        dropout_op_kwargs: its arguments.
        nonlin: class of the nonlinearity.
        nonlin_kwargs: its arguments.
        deep_supervision: return a list of segmentations.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        **rest: of the plan's ``arch_kwargs``; the backbone has its own encoder.

    Raises:
        NotImplementedError: for a 3-D plan.
        ValueError: see :class:`~braintum.architectures.networks.timm_backbone.TimmEncoder`.
    """

    def __init__(
        self,
        backbone: str,
        input_channels: int,
        num_classes: int,
        features_per_stage: int | Sequence[int],
        conv_op: Any,
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        n_conv_per_stage_decoder: int | Sequence[int],
        num_tumour_classes: int,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: dict | None = None,
        nonlin: Any = None,
        nonlin_kwargs: dict | None = None,
        deep_supervision: bool = False,
        sigmoid_segmentation: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__()
        num_levels = len(strides) if isinstance(strides, Sequence) else rest["n_stages"]
        steps = per_level_and_axis("strides", strides, num_levels, conv_op)
        self.encoder = TimmEncoder(
            backbone,
            input_channels,
            per_level("features_per_stage", features_per_stage, num_levels),
            steps,
            norm_op,
            norm_op_kwargs,
        )
        kernels = per_level_and_axis("kernel_sizes", kernel_sizes, num_levels, conv_op)
        convolutions = per_level("n_conv_per_stage_decoder", n_conv_per_stage_decoder, num_levels - 1)
        levels = self.encoder.levels
        topology: Any = SimpleNamespace(
            output_channels=self.encoder.output_channels,
            strides=self.encoder.strides,
            kernel_sizes=[kernels[level] for level in levels],
            conv_op=conv_op,
            conv_bias=conv_bias,
            norm_op=norm_op,
            norm_op_kwargs=norm_op_kwargs,
            dropout_op=dropout_op,
            dropout_op_kwargs=dropout_op_kwargs,
            nonlin=nonlin,
            nonlin_kwargs=nonlin_kwargs,
        )
        # the plan lists them from the lowest level upwards
        self.decoder = UNetDecoder(
            topology, num_classes, [convolutions[-1 - level] for level in levels[-2::-1]], deep_supervision
        )
        self.classification_head = TumourWeightedClassificationHead(
            conv_op, self.encoder.output_channels, num_tumour_classes, sigmoid_segmentation=sigmoid_segmentation
        )
        self.set_strides(steps)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation, for ``network.apply``."""
        InitWeights_He(1e-2)(module)
