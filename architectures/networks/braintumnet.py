"""BrainTumNet: segmentation and tumour type by convolutions and adaptive masked transformers, end to end.

Paper 000, Lv et al. 2025 (https://doi.org/10.3389/fonc.2025.1585891), section 2.2 and figure 2. Settled here, where the
paper gives no sizes:

- strides, channels, kernels, norm and nonlinearity come from nnU-Net's plan, in 2-D and 3-D. A level's first
  convolution has the plan's kernel and, below the first level, downsamples; after it come residual blocks of parallel
  convolutions: half of the channels with the plan's kernel, a quarter with 1x1, a quarter with a kernel larger by two.
- BT blocks stand where the image is downsampled at least eightfold (geometric mean over the axes), and always at the
  bottleneck, in the encoder and in the decoder: a patch of 256 x 256 has 1024 tokens at most, one of 128 x 128 x 128
  has 4096. The paper has them at every level of the decoder, as ``bt_blocks_at_all_levels`` does: on the
  paper's plans three times the feature maps, and 1.7 times the multiply-adds of a segmentation.
- low-level features of a BT block's masks are the level above in the encoder, the gated skip in the decoder.
- T-InceptionNet reads the encoder levels that have BT blocks.
- random initialisation; the paper mentions pre-trained encoders without describing them.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from braintum.architectures.blocks.bt_block import BTBlock
from braintum.architectures.blocks.cbam import CBAM
from braintum.architectures.blocks.pyramid_fusion import PyramidFusion
from braintum.architectures.heads.t_inception import TInceptionNet
from braintum.architectures.networks.braintumnet_encoder import BrainTumNetEncoder, Topology
from braintum.architectures.plan_topology import per_level, per_level_and_axis

_CBAM_KERNEL = 7


class BrainTumNetDecoder(nn.Module):
    """Upsampling, CBAM on the skip, convolutions, BT block; then pyramid fusion and a head at every level.

    Args:
        topology: the plan.
        num_classes: channels of the segmentation.
        num_convolutions: one number a level, lowest resolution first, as in nnU-Net's plans.
        deep_supervision: return the segmentations of all levels.
        use_transformer: False leaves the BT blocks out.
        bt_blocks_at_all_levels: True for BT blocks also at high resolution.
    """

    def __init__(
        self,
        topology: Topology,
        num_classes: int,
        num_convolutions: list[int],
        deep_supervision: bool,
        use_transformer: bool,
        bt_blocks_at_all_levels: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.num_classes = num_classes
        self.num_convolutions = num_convolutions
        upsampling_op = get_matching_convtransp(topology.conv_op)
        self.upsamplings, self.skip_attentions = nn.ModuleList(), nn.ModuleList()
        self.stages = nn.ModuleList()
        self.bt_blocks: Any = nn.ModuleList()  # one list a level, empty where there is none
        levels = list(reversed(range(len(topology.channels) - 1)))
        self.level_channels = [topology.channels[level] for level in levels]
        for level, depth in zip(levels, num_convolutions, strict=True):
            channels, kernel, stride = topology.channels[level], topology.kernels[level], topology.strides[level + 1]
            self.upsamplings.append(
                upsampling_op(topology.channels[level + 1], channels, stride, stride, bias=topology.conv_bias)
            )
            attention_kernel = [_CBAM_KERNEL if edge > 1 else 1 for edge in kernel]
            self.skip_attentions.append(CBAM(topology.conv_op, channels, attention_kernel))
            inputs = [2 * channels] + [channels] * (depth - 1)
            self.stages.append(nn.Sequential(*(topology.convolution(i, channels, kernel) for i in inputs)))
            has_transformer = use_transformer and (bt_blocks_at_all_levels or topology.has_transformer(level))
            self.bt_blocks.append(
                nn.ModuleList([BTBlock(topology.conv_op, channels, channels)] if has_transformer else [])
            )
        self.pyramid_channels = topology.channels[0]
        self.pyramid = PyramidFusion(topology.conv_op, self.level_channels, self.pyramid_channels)
        self.seg_layers = nn.ModuleList(topology.conv_op(self.pyramid_channels, num_classes, 1) for _ in levels)

    def forward(self, skips: Sequence[torch.Tensor]) -> Any:
        """Features of the encoder to segmentation logits: a tensor, or a list, highest resolution first."""
        x, levels = skips[-1], []
        for skip, upsampling, skip_attention, stage, bt_blocks in zip(
            reversed(skips[:-1]), self.upsamplings, self.skip_attentions, self.stages, self.bt_blocks, strict=True
        ):
            skip = skip_attention(skip)
            x = stage(torch.cat((upsampling(x), skip), 1))
            for bt_block in bt_blocks:
                x = bt_block(x, skip)
            levels.append(x)
        pyramid = self.pyramid(levels)
        if not self.deep_supervision:
            return self.seg_layers[-1](pyramid[-1])
        return [head(features) for head, features in zip(self.seg_layers, pyramid, strict=True)][::-1]

    def compute_conv_feature_map_size(self, level_sizes: Sequence[Sequence[int]]) -> int:
        """Feature map elements, in the unit of nnU-Net's memory estimate.

        Args:
            level_sizes: spatial size of every level, highest resolution first.
        """
        total = 0
        for index, size in enumerate(reversed(level_sizes[:-1])):
            maps = (1 + self.num_convolutions[index]) * self.level_channels[index]  # upsampling and convolutions
            maps += self.level_channels[index] + 1 + self.pyramid_channels  # gated skip, its map, pyramid
            if self.deep_supervision or index == len(self.stages) - 1:
                maps += self.num_classes
            total += maps * prod(size)
            total += sum(block.compute_conv_feature_map_size(size) for block in self.bt_blocks[index])
        return total


class BrainTumNet(nn.Module):
    """Segments the tumour and names its type.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the segmentation.
        n_stages: encoder levels, the bottleneck included; two at least.
        features_per_stage: channels of each level.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: convolution kernel of each level, odd.
        strides: downsampling of each level.
        n_conv_per_stage_decoder: convolutions of each decoder level, lowest resolution first.
        num_tumour_classes: number of tumour types.
        n_conv_per_stage: convolutions of each encoder level in a plan of nnU-Net's standard U-Net: the first and then
            a block of parallel convolutions for each further one, one block at least.
        n_blocks_per_stage: blocks of each encoder level in a plan of nnU-Net's residual encoder U-Net: as many blocks
            of parallel convolutions.
        conv_bias: whether convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
        dropout_op: dropout class, None for none.
        dropout_op_kwargs: its arguments.
        nonlin: class of the nonlinearity, None for none.
        nonlin_kwargs: its arguments.
        deep_supervision: return a list of segmentations.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        use_transformer: False for the paper's ablation: no BT blocks, no transformer in T-InceptionNet.
        use_inception: False for the paper's ablation: the classification head pools gated features as they are.
        bt_blocks_at_all_levels: BT blocks at every level of the decoder, whatever its resolution.
        modality_masks: a branch of the encoder's attention masks for each channel of the image, see
            :mod:`braintum.architectures.blocks.modality_masks`.

    Raises:
        ValueError: both or none of ``n_conv_per_stage`` and ``n_blocks_per_stage`` are given, a list does not have one
            entry a level, or there are too few levels, channels or tumour types.
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
        num_tumour_classes: int,
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
        sigmoid_segmentation: bool = False,
        use_transformer: bool = True,
        use_inception: bool = True,
        bt_blocks_at_all_levels: bool = False,
        modality_masks: bool = False,
    ) -> None:
        super().__init__()
        if n_stages < 2:
            raise ValueError(f"an encoder and a decoder need two levels at least, got {n_stages}")
        if (n_conv_per_stage is None) == (n_blocks_per_stage is None):
            raise ValueError("give either n_conv_per_stage or n_blocks_per_stage")
        if n_blocks_per_stage is not None:
            num_blocks = per_level("n_blocks_per_stage", n_blocks_per_stage, n_stages)
        else:
            num_blocks = [max(1, n - 1) for n in per_level("n_conv_per_stage", n_conv_per_stage, n_stages)]
        topology = Topology(
            channels=per_level("features_per_stage", features_per_stage, n_stages),
            kernels=per_level_and_axis("kernel_sizes", kernel_sizes, n_stages, conv_op),
            strides=per_level_and_axis("strides", strides, n_stages, conv_op),
            conv_op=conv_op,
            conv_bias=conv_bias,
            norm_op=norm_op,
            norm_op_kwargs=norm_op_kwargs,
            dropout_op=dropout_op,
            dropout_op_kwargs=dropout_op_kwargs,
            nonlin=nonlin,
            nonlin_kwargs=nonlin_kwargs,
        )
        num_convolutions = per_level("n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        self.encoder, levels = self.build_encoder(input_channels, topology, num_blocks, use_transformer, modality_masks)
        topology = topology.restricted_to(levels, self.encoder.strides)
        num_convolutions = [num_convolutions[-1 - level] for level in levels[-2::-1]]  # from the lowest level upwards
        self.decoder = BrainTumNetDecoder(
            topology, num_classes, num_convolutions, deep_supervision, use_transformer, bt_blocks_at_all_levels
        )
        self.num_class_levels = sum(topology.has_transformer(level) for level in range(len(levels)))
        self.classification_head = TInceptionNet(
            conv_op,
            topology.channels[-self.num_class_levels :],
            num_tumour_classes,
            sigmoid_segmentation,
            use_transformer=use_transformer,
            use_inception=use_inception,
        )
        self.segmentation_is_frozen = False

    def build_encoder(
        self,
        input_channels: int,
        topology: Topology,
        num_blocks: list[int],
        use_transformer: bool,
        modality_masks: bool,
    ) -> tuple[Any, list[int]]:
        """The encoder, and the levels of the plan that it has feature maps of."""
        encoder = BrainTumNetEncoder(input_channels, topology, num_blocks, use_transformer, modality_masks)
        return encoder, list(range(len(num_blocks)))

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X), each axis divisible by the product of its strides.
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).
        """
        skips = self.encoder(x)
        segmentation = self.decoder(skips)
        if not with_classes:
            return segmentation
        full_resolution = segmentation[0] if isinstance(segmentation, list) else segmentation
        return segmentation, self.classification_head(skips[-self.num_class_levels :], full_resolution)

    def freeze_segmentation(self) -> None:
        """Second stage of the paper's two-stage comparison: from now on only the classification head learns.

        Encoder and decoder take no gradient and stay in evaluation mode (statistics of batch norm, dropout).
        """
        self.segmentation_is_frozen = True
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "BrainTumNet":
        """As torch's, except that a frozen segmentation stays in evaluation mode."""
        super().train(mode)
        if self.segmentation_is_frozen:
            self.encoder.eval()
            self.decoder.eval()
        return self

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``: elements of all large feature maps."""
        sizes = self.encoder.level_sizes(input_size)
        return (
            self.encoder.compute_conv_feature_map_size(input_size)
            + self.decoder.compute_conv_feature_map_size(sizes)
            + self.classification_head.compute_conv_feature_map_size(sizes[-self.num_class_levels :])
        )

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation, for ``network.apply``; a BT block starts as the identity."""
        InitWeights_He(1e-2)(module)
        if isinstance(module, BTBlock):  # visited after its layers
            nn.init.zeros_(module.restore.weight)
