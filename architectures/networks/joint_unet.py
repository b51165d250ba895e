"""U-Net and Joint U-Net of paper 001 (section II-D, a and d); the U-Net is also paper 004's.

Both are nnU-Net's PlainConvUNet: two convolutions with norm and nonlinearity a level, transposed convolutions up,
concatenated skips. It halves the resolution by the stride of a level's first convolution where Ronneberger et al. 2015
have max pooling. Widths (64 to 1024), batch norm and ReLU are up to the plan. Every state-dict key is the stock one,
so that stock checkpoints warm-start them.
"""

from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

from braintum.architectures.heads.dense_classification_head import DenseClassificationHead
from braintum.architectures.plan_topology import plain_arch_kwargs


class UNet(PlainConvUNet):
    """U-Net on the topology of any plan.

    Args:
        **arch_kwargs: ``input_channels``, ``num_classes``, ``deep_supervision`` and a plan's ``arch_kwargs``, see
            :func:`braintum.architectures.plan_topology.plain_arch_kwargs`.
    """

    def __init__(self, **arch_kwargs: Any) -> None:
        super().__init__(**plain_arch_kwargs(arch_kwargs))


class JointUNet(UNet):
    """U-Net with a classification head that branches from the bottleneck.

    Args:
        num_tumour_classes: number of tumour types.
        sigmoid_segmentation: taken as from every multi-task network; this head does not read the segmentation.
        **arch_kwargs: see :class:`UNet`.
    """

    def __init__(self, *, num_tumour_classes: int, sigmoid_segmentation: bool = False, **arch_kwargs: Any) -> None:
        super().__init__(**arch_kwargs)
        self.classification_head = DenseClassificationHead(
            self.encoder.conv_op, self.encoder.output_channels[-1], num_tumour_classes
        )

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """Segmentation logits, and class logits on request.

        Args:
            x: (B, C, [Z,] Y, X).
            with_classes: also return class logits.

        Returns:
            A tensor or (deep supervision) a list, highest resolution first; with ``with_classes`` a pair of it and
            class logits (B, num_tumour_classes).
        """
        skips = self.encoder(x)
        segmentation = self.decoder(skips)
        if not with_classes:
            return segmentation
        return segmentation, self.classification_head(skips[-1])
