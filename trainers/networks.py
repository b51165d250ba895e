"""Networks for trainers: what nnU-Net calls as ``build_network_architecture``."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from braintum.architectures.input_channels import num_network_channels
from braintum.architectures.old_names import current_architecture

ChooseNetwork = Callable[[ConfigurationManager], type[nn.Module]]
"""The class of the network, for a configuration of the plans."""

BuildNetwork = partial[nn.Module]
"""nnU-Net's ``build_network_architecture``; its first argument, given already, is the :data:`ChooseNetwork`."""


def import_class(module: str, name: str, plan: ConfigurationManager) -> type[nn.Module]:
    """A :data:`ChooseNetwork`, with its first two arguments given, that imports the class when it is asked for.

    torchvision and timm fail to import beside a torch that was built for other hardware; only those who train such a
    network need them.
    """
    return getattr(import_module(module), name)


def segmentation_network(choose: ChooseNetwork, **options: Any) -> BuildNetwork:
    """Builds a network that segments, on the topology of any plan.

    Args:
        choose: the network's class.
        **options: arguments of its constructor beyond the plan's.

    Returns:
        ``build_network_architecture`` of a trainer, to be made static. It raises ValueError where the plans'
        ``neighbouring_slices`` makes no sense, or they name a class that version 0.1 never had.
    """
    return partial(_build_segmentation_network, choose, options)


def reconstruction_network(choose: ChooseNetwork, **options: Any) -> BuildNetwork:
    """Builds a segmentation network whose outputs are the channels that it reads, see :func:`segmentation_network`."""
    return partial(_build_reconstruction_network, choose, options)


def multi_task_network(choose: ChooseNetwork, **options: Any) -> BuildNetwork:
    """Builds a network that segments and classifies; the classes come from the plans.

    Args:
        choose: the network's class.
        **options: arguments of its constructor beyond the plan's and the classes.

    Returns:
        ``build_network_architecture`` of a trainer, to be made static. It raises ValueError where the plans name no
        classes.
    """
    return partial(_build_multi_task_network, choose, options)


def _build_segmentation_network(
    choose: ChooseNetwork,
    options: dict[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
) -> nn.Module:
    """``num_input_channels`` counts the channels of the images; neighbouring slices of the plan come on top."""
    network_class = choose(configuration_manager)
    architecture = configuration_manager.configuration["architecture"]
    architecture = current_architecture(architecture, f"{plans_manager.plans_name}.json")
    network = get_network_from_plans(
        f"{network_class.__module__}.{network_class.__qualname__}",
        {**architecture["arch_kwargs"], **options},
        architecture["_kw_requires_import"],
        num_network_channels(num_input_channels, configuration_manager.configuration),
        num_output_channels,
        allow_init=True,
        deep_supervision=enable_deep_supervision,
    )
    if not enable_deep_supervision:
        # the heads of lower resolutions are there for checkpoints; DDP wants a gradient for what is trainable
        for head in getattr(network.decoder, "seg_layers", [])[:-1]:
            head.requires_grad_(False)
    return network


def _build_reconstruction_network(
    choose: ChooseNetwork,
    options: dict[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
) -> nn.Module:
    """``num_output_channels`` counts labels, which it does not have."""
    channels = num_network_channels(num_input_channels, configuration_manager.configuration)
    return _build_segmentation_network(
        choose, options, plans_manager, configuration_manager, num_input_channels, channels, enable_deep_supervision
    )


def _build_multi_task_network(
    choose: ChooseNetwork,
    options: dict[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
) -> nn.Module:
    """See :func:`~braintum.trainers.networks.segmentation_network`."""
    classification = plans_manager.plans.get("classification")
    if classification is None:
        raise ValueError(
            f'the plans {plans_manager.plans_name} have no "classification"; plan again with BrainTumPlanner, or '
            "train with nnUNetTrainerMultiTask, which adds it"
        )
    classes = {
        "num_tumour_classes": len(classification["class_names"]),
        "sigmoid_segmentation": classification["region_based"],
    }
    return _build_segmentation_network(
        choose,
        {**classes, **options},
        plans_manager,
        configuration_manager,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision,
    )
