"""ResSE-LKA-UNet: a U-Net with residual squeeze-and-excitation, large kernel attention and context extraction.

Paper 002, section 2.2: every encoder level is a ResSE block followed by an LKA module, the bottleneck ends in context
extraction, the decoder is a U-Net's. Strides, channels, kernels, norm and nonlinearity come from the plan, in 2-D and
3-D; the paper's own are batch norm and ReLU. The decoder is nnU-Net's. Where the plan's kernel is 1 wide along an axis
(thick slices), so are the kernels of LKA and context extraction.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from braintum.architectures.blocks.context_extraction import ContextExtraction
from braintum.architectures.blocks.large_kernel_attention import LargeKernelAttention
from braintum.architectures.blocks.residual_squeeze_excitation import ResidualSqueezeExcitationBlock, SqueezeExcitation
from braintum.architectures.heads.classification_head import TumourWeightedClassificationHead
from braintum.architectures.plan_topology import per_level, per_level_and_axis

_LKA_KERNEL, _LKA_DILATED_KERNEL = 5, 7


class ResSELKAEncoder(nn.Module):
    """Levels of ResSE blocks and an LKA module each; context extraction after the last.

    Args:
        input_channels: channels of the image.
        topology: the plan's arguments under nnU-Net's names, a list entry per level: ``output_channels``, ``strides``,
            ``kernel_sizes``, ``n_blocks_per_stage``, and ``conv_op``, ``conv_bias``, ``norm_op``, ``norm_op_kwargs``,
            ``dropout_op``, ``dropout_op_kwargs``, ``nonlin``, ``nonlin_kwargs``.
        lka_dilation: dilation of the second depthwise convolution.
        context_dilation: dilation in context extraction.
    """

    def __init__(
        self, input_channels: int, topology: SimpleNamespace, lka_dilation: int, context_dilation: int
    ) -> None:
        super().__init__()
        self.conv_op = topology.conv_op
        self.output_channels = topology.output_channels
        self.strides = topology.strides
        stages = []
        for channels, stride, kernel_size, num_blocks in zip(
            topology.output_channels,
            topology.strides,
            topology.kernel_sizes,
            topology.n_blocks_per_stage,
            strict=True,
        ):
            blocks: list[nn.Module] = []
            for _ in range(num_blocks):
                blocks.append(
                    ResidualSqueezeExcitationBlock(
                        topology.conv_op,
                        input_channels,
                        channels,
                        kernel_size,
                        1 if blocks else stride,
                        topology.conv_bias,
                        topology.norm_op,
                        topology.norm_op_kwargs,
                        topology.dropout_op,
                        topology.dropout_op_kwargs,
                        topology.nonlin,
                        topology.nonlin_kwargs,
                    )
                )
                input_channels = channels
            blocks.append(
                LargeKernelAttention(
                    topology.conv_op,
                    channels,
                    [_LKA_KERNEL if edge > 1 else 1 for edge in kernel_size],
                    [_LKA_DILATED_KERNEL if edge > 1 else 1 for edge in kernel_size],
                    lka_dilation,
                    topology.conv_bias,
                    topology.norm_op,
                    topology.norm_op_kwargs,
                )
            )
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.context_extraction = ContextExtraction(
            topology.conv_op,
            input_channels,
            topology.kernel_sizes[-1],
            context_dilation,
            topology.conv_bias,
            topology.norm_op,
            topology.norm_op_kwargs,
            topology.nonlin,
            topology.nonlin_kwargs,
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, highest resolution first; the last with context."""
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        skips[-1] = self.context_extraction(x)
        return skips

    def stage_sizes(self, input_size: Sequence[int]) -> list[list[int]]:
        """Spatial size of every level's features for a patch of ``input_size``."""
        sizes = []
        size = list(input_size)
        for stride in self.strides:
            size = [edge // step for edge, step in zip(size, stride, strict=True)]
            sizes.append(size)
        return sizes

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the convolutions, in the unit of nnU-Net's memory estimate."""
        total = 0
        size = list(input_size)
        block: Any
        for stage, stage_size in zip(self.stages, self.stage_sizes(input_size), strict=True):
            for block in stage.children():
                total += block.compute_conv_feature_map_size(size)
                size = stage_size
        return total + self.context_extraction.compute_conv_feature_map_size(size)


class ResSELKAUNet(nn.Module):
    """The network of paper 002, with a classification head on request.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        n_stages: resolution levels.
        features_per_stage: channels of each level, highest resolution first.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: convolution kernel of each level.
        strides: stride of each level's first convolution.
        n_conv_per_stage_decoder: convolutions of each decoder level.
        n_conv_per_stage: convolutions of each encoder level, as plans for PlainConvUNet have them; a ResSE block has
            two, an odd number is rounded up.
        n_blocks_per_stage: ResSE blocks of each encoder level, as plans for ResidualEncoderUNet have them; exactly one
            of the two is given.
        conv_bias: whether convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
        dropout_op: dropout class, None for none.
        dropout_op_kwargs: its arguments.
        nonlin: class of the nonlinearity.
        nonlin_kwargs: its arguments.
        deep_supervision: return a list of segmentations.
        num_tumour_classes: tumour types of the classification head, None for a network without it.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        lka_dilation: dilation of the LKA modules' second depthwise convolution; 1 for the undilated reading.
        context_dilation: dilation in context extraction.

    Raises:
        ValueError: both or none of ``n_conv_per_stage`` and ``n_blocks_per_stage`` are given, or a list does not have
            one entry a level.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: Any,
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        n_conv_per_stage_decoder: int | Sequence[int],
        n_conv_per_stage: int | Sequence[int] | None = None,
        n_blocks_per_stage: int | Sequence[int] | None = None,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: dict | None = None,
        nonlin: Any = None,
        nonlin_kwargs: dict | None = None,
        deep_supervision: bool = False,
        num_tumour_classes: int | None = None,
        sigmoid_segmentation: bool = False,
        lka_dilation: int = 3,
        context_dilation: int = 1,
    ) -> None:
        super().__init__()
        if (n_conv_per_stage is None) == (n_blocks_per_stage is None):
            raise ValueError("give either n_conv_per_stage or n_blocks_per_stage")
        if n_conv_per_stage is not None:
            n_blocks_per_stage = [
                (convs + 1) // 2 for convs in per_level("n_conv_per_stage", n_conv_per_stage, n_stages)
            ]
        topology = SimpleNamespace(
            output_channels=per_level("features_per_stage", features_per_stage, n_stages),
            strides=per_level_and_axis("strides", strides, n_stages, conv_op),
            kernel_sizes=per_level_and_axis("kernel_sizes", kernel_sizes, n_stages, conv_op),
            n_blocks_per_stage=per_level("n_blocks_per_stage", n_blocks_per_stage, n_stages),
            conv_op=conv_op,
            conv_bias=conv_bias,
            norm_op=norm_op,
            norm_op_kwargs=norm_op_kwargs,
            dropout_op=dropout_op,
            dropout_op_kwargs=dropout_op_kwargs,
            nonlin=nonlin,
            nonlin_kwargs=nonlin_kwargs,
        )
        self.encoder = ResSELKAEncoder(input_channels, topology, lka_dilation, context_dilation)
        # the decoder would register an encoder; it only reads the topology
        self.decoder = UNetDecoder(topology, num_classes, n_conv_per_stage_decoder, deep_supervision)
        if num_tumour_classes is not None:  # joint prediction recognises a network with classes by the attribute
            self.classification_head = TumourWeightedClassificationHead(
                conv_op, topology.output_channels, num_tumour_classes, sigmoid_segmentation=sigmoid_segmentation
            )
        _register_once(self)

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X), each axis divisible by the product of its strides.
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).

        Raises:
            ValueError: class logits are asked of a network without the head.
        """
        skips = self.encoder(x)
        segmentation = self.decoder(skips)
        if not with_classes:
            return segmentation
        if not hasattr(self, "classification_head"):
            raise ValueError("this network has no classification head; build it with num_tumour_classes")
        full_resolution = segmentation[0] if isinstance(segmentation, list) else segmentation
        return segmentation, self.classification_head(skips, full_resolution)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``, with the classification head counted."""
        total = self.encoder.compute_conv_feature_map_size(input_size)
        total += int(self.decoder.compute_conv_feature_map_size(input_size))
        if hasattr(self, "classification_head"):
            total += self.classification_head.compute_conv_feature_map_size(self.encoder.stage_sizes(input_size))
        return total

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation, for ``network.apply``; gates start with a channel that is not rectified away."""
        InitWeights_He(1e-2)(module)
        if isinstance(module, SqueezeExcitation):
            module.pair_hidden_channels()


def _register_once(network: nn.Module) -> None:
    """Drop the second name of each layer in dynamic-network-architectures' convolution blocks.

    They register a layer as, say, ``conv`` and as ``all_modules.0``, and so hold it twice in the state dict; only
    ``all_modules`` is used.
    """
    for block in network.modules():
        if isinstance(block, ConvDropoutNormReLU):
            for alias in ("conv", "dropout", "norm", "nonlin"):
                if hasattr(block, alias):
                    delattr(block, alias)
