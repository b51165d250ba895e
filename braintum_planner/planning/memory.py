"""How much memory training a network takes, as nnU-Net's planner counts it: elements of feature maps a patch."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from braintum.architectures.networks.multi_task_unet import multi_task_network_class

_TWO_CLASSES: Mapping[str, Any] = {"class_names": ("one", "other"), "region_based": False}


def planned_network(
    architecture: Mapping[str, Any],
    input_channels: int,
    output_channels: int,
    classification: Mapping[str, Any] | None,
    trained_network: type[nn.Module] | None = None,
) -> nn.Module:
    """The network that is trained with a plan, without memory for its parameters (on the meta device).

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import``, as in plans.
        input_channels: of the images.
        output_channels: of the segmentation.
        classification: the plans' entry of this name; None for a data set without classes.
        trained_network: that a trainer builds on the plan's topology; None for the plan's own network, with the
            classification head where there are classes.

    Raises:
        NotImplementedError: the network has no multi-task counterpart.
    """
    name, kwargs = architecture["network_class_name"], dict(architecture["arch_kwargs"])
    network_class = trained_network
    if network_class is None and classification is not None:
        network_class = multi_task_network_class(name)
    if network_class is not None:
        name = f"{network_class.__module__}.{network_class.__qualname__}"
        if "num_tumour_classes" in inspect.signature(network_class).parameters:
            # a paper's network has its head in any case; two classes tell as much of memory as ten
            classification = classification or _TWO_CLASSES
            kwargs["num_tumour_classes"] = len(classification["class_names"])
            kwargs["sigmoid_segmentation"] = classification["region_based"]
    with torch.device("meta"):
        return get_network_from_plans(
            name, kwargs, architecture["_kw_requires_import"], input_channels, output_channels, allow_init=False
        )


def feature_map_elements(network: Any, patch_size: Sequence[int]) -> float:
    """What the network itself says: elements of all feature maps for one patch.

    Args:
        network: has ``compute_conv_feature_map_size``.
        patch_size: ([z,] y, x).
    """
    return float(network.compute_conv_feature_map_size(tuple(int(edge) for edge in patch_size)))
