"""Both tasks on a pretrained backbone of timm, and what all trainers share that start from ImageNet weights."""

import os
from functools import cache, partial
from typing import Any

from torch import nn

from braintum.architectures.weights.catalogue import entry_named
from braintum.architectures.weights.partial_loading import LoadReport
from braintum.architectures.weights.store import VARIABLE, InstalledWeights, find, read_weights
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import import_class, multi_task_network
from braintum.trainers.recipes.recipe import PRETRAINED, ParameterGroup, split_off
from braintum.trainers.segmentation import SegmentationTrainer

PREFIX = "nnUNetTrainerPretrained_"
"""Of the trainers' names that name a backbone; the rest is timm's name."""

DEFAULT_BACKBONE = "tf_efficientnet_lite0"


class StartsFromPretrained(SegmentationTrainer):
    """Mixed into trainers whose networks want pretrained weights: the user's choice, or those of the catalogue.

    Raises:
        FileNotFoundError: the weights that the environment variable names do not exist.
        ValueError: they are of another network, or none are installed.
    """

    def pretrained_network(self) -> str:
        """The network's name in the catalogue of weights."""
        raise NotImplementedError

    def load_initial_weights(self) -> None:
        """As the environment variable says, else from the catalogue."""
        self.load_weights(find(os.environ.get(VARIABLE), self.pretrained_network()))

    def load_into_network(self, weights: InstalledWeights) -> LoadReport:
        """Load weights into the part of the network that is pretrained."""
        entry = entry_named(weights.name)
        options = {"in_order": True} if entry is not None and entry.in_order else {}
        return self.bare_network.load_pretrained(read_weights(weights), **options)


_TIMM_UNET = partial(import_class, "braintum.architectures.networks.timm_unet", "TimmUNet")


class PretrainedBackboneTrainer(StartsFromPretrained, nnUNetTrainerMultiTask):
    """Base of those that train a network on a backbone of timm.

    Attributes:
        backbone: its name in timm.
    """

    recipe = PRETRAINED
    dimensions = (2,)
    backbone = DEFAULT_BACKBONE

    def pretrained_network(self) -> str:
        """The backbone's name in timm."""
        return self.backbone

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], ParameterGroup]]:
        """As ever, with the backbone apart: what it has learned changes more slowly."""
        (body, settings), *others = super().parameter_groups()
        if self.recipe.backbone is None:
            return [(body, settings), *others]
        rest, backbone = split_off(body, self.bare_network.encoder.backbone)
        return [(rest, settings), (backbone, self.recipe.backbone), *others]


class nnUNetTrainerPretrained(PretrainedBackboneTrainer):
    """U-Net on an ImageNet backbone, with nnU-Net's decoder and the classification head; for short trainings.

    The backbone is EfficientNet-Lite0. ``nnUNetTrainerPretrained_NAME`` trains the same on any other backbone of timm,
    by its name there.
    """

    build_network_architecture = staticmethod(multi_task_network(_TIMM_UNET, backbone=DEFAULT_BACKBONE))


@cache
def pretrained_trainer(backbone: str) -> type[nnUNetTrainerPretrained]:
    """The trainer on a backbone of timm, under the name by which nnU-Net looks for it."""
    network: Any = multi_task_network(_TIMM_UNET, backbone=backbone)
    attributes = {
        "backbone": backbone,
        "build_network_architecture": staticmethod(network),
        "__doc__": f"U-Net on timm's {backbone}, see :class:`nnUNetTrainerPretrained`.",
        "__module__": __name__,
    }
    return type(PREFIX + backbone, (nnUNetTrainerPretrained,), attributes)
