"""BrainTumNet on a pretrained backbone of timm, 2-D.

Paper 000 credits "pre-trained encoders", which its method never describes. Settled here: a backbone's feature maps in
place of the levels of parallel convolutions, and BT blocks on them where BrainTumNet has them. Above the backbone's
first feature map there are no levels; the logits are interpolated, see
:mod:`braintum.architectures.networks.timm_backbone`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from braintum.architectures.blocks.bt_block import BTBlock
from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.architectures.networks.braintumnet_encoder import Topology
from braintum.architectures.networks.timm_backbone import OnTimmBackbone, TimmEncoder
from braintum.architectures.plan_topology import per_level_and_axis


class TimmBrainTumNetEncoder(TimmEncoder):
    """Feature maps of a backbone, with BT blocks at low resolution.

    Args:
        backbone: name in timm.
        input_channels: channels of the image.
        topology: the plan.
        use_transformer: False leaves the BT blocks out.
    """

    def __init__(self, backbone: str, input_channels: int, topology: Topology, use_transformer: bool) -> None:
        super().__init__(
            backbone, input_channels, topology.channels, topology.strides, topology.norm_op, topology.norm_op_kwargs
        )
        own = topology.restricted_to(self.levels, self.strides)
        self.bt_blocks: Any = nn.ModuleList()  # one list a level, empty where there is none
        for level, channels in enumerate(own.channels):
            has_block = use_transformer and level > 0 and own.has_transformer(level)
            blocks = [BTBlock(own.conv_op, channels, own.channels[level - 1])] if has_block else []
            self.bt_blocks.append(nn.ModuleList(blocks))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, highest resolution first, of images (B, C, Y, X)."""
        maps: list[torch.Tensor] = []
        for features, bt_blocks in zip(super().forward(x), self.bt_blocks, strict=True):
            for bt_block in bt_blocks:
                features = bt_block(features, maps[-1])
            maps.append(features)
        return maps


class TimmBrainTumNet(OnTimmBackbone, BrainTumNet):
    """BrainTumNet on a backbone.

    Args:
        backbone: name in timm.
        strides: of the plan.
        conv_op: ``nn.Conv2d``.
        **arguments: the other ones of :class:`braintum.architectures.networks.braintumnet.BrainTumNet`.

    Raises:
        NotImplementedError: for a 3-D plan, or masks by modality.
        ValueError: see :class:`braintum.architectures.networks.timm_backbone.TimmEncoder`.
    """

    def __init__(self, backbone: str, strides: Any, conv_op: Any, **arguments: Any) -> None:
        self.backbone_name = backbone
        super().__init__(strides=strides, conv_op=conv_op, **arguments)
        self.set_strides(per_level_and_axis("strides", strides, arguments["n_stages"], conv_op))

    def build_encoder(
        self,
        input_channels: int,
        topology: Topology,
        num_blocks: list[int],
        use_transformer: bool,
        modality_masks: bool,
    ) -> tuple[Any, list[int]]:
        """The backbone, and the levels of the plan that it has feature maps of."""
        if modality_masks:
            raise NotImplementedError("masks by modality are those of BrainTumNet's own encoder, not of a backbone")
        encoder = TimmBrainTumNetEncoder(self.backbone_name, input_channels, topology, use_transformer)
        return encoder, encoder.levels

    def classify(self, skips: Sequence[torch.Tensor], segmentation: torch.Tensor) -> torch.Tensor:
        """Class logits of T-InceptionNet, which reads the levels that have BT blocks."""
        return self.classification_head(skips[-self.num_class_levels :], segmentation)
