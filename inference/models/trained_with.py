"""Whether the plans and the ``dataset.json`` beside a checkpoint are those that it was trained with.

nnU-Net keeps both in the checkpoint and does not look at them again: weights beside files that were planned anew, or
copied from another model, would predict other classes, labels or intensities without a word.
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.architectures.old_names import current_architecture

_DATASET = ("channel_names", "labels", "regions_class_order", "classification")
_PLANS = ("image_reader_writer", "label_manager", "transpose_forward", "transpose_backward")
_CONFIGURATION = (
    *("preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture"),
    *("resampling_fn_data", "resampling_fn_data_kwargs"),
    *("resampling_fn_probabilities", "resampling_fn_probabilities_kwargs"),
    *("neighbouring_slices", "slice_edge", "slice_crop"),
)
_INTENSITIES = "foreground_intensity_properties_per_channel"
_SHOWN = 3
_MOST_CHARACTERS = 200


def check_trained_with(
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    file: str | os.PathLike[str],
    remedy: str = "put back the plans.json and dataset.json that it was trained with, or choose folds (-f) that were "
    "trained with these, or train this one again",
) -> None:
    """Refuse plans and ``dataset.json`` that a checkpoint was not trained with, where a prediction depends on it.

    Args:
        checkpoint: of :func:`braintum.inference.models.checkpoints.load_checkpoint_safely`; one that does not hold
            its plans or ``dataset.json`` is not compared.
        plans: content of the file beside it.
        dataset_json: content of the file beside it.
        file: the checkpoint, for messages.
        remedy: the end of a message.

    Raises:
        ValueError: naming what differs, with both values.
    """
    arguments = checkpoint["init_args"]
    differences = []
    if isinstance(trained := arguments.get("dataset_json"), Mapping):
        differences += [f"dataset.json: {text}" for text in _differences(_of_data(dataset_json), _of_data(trained))]
    if isinstance(trained := arguments.get("plans"), Mapping):
        here, there = (_of_plans(content, arguments["configuration"]) for content in (plans, trained))
        differences += [f"plans.json: {text}" for text in _differences(here, there)]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more differences" if len(differences) > _SHOWN else ""
        raise ValueError(f"{file} was trained with other files: {'; '.join(differences[:_SHOWN])}{more}. So {remedy}")


def _of_data(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """What a prediction takes from ``dataset.json``."""
    content = {name: dataset_json.get(name) for name in _DATASET}
    if dataset_json.get("regions_class_order") is not None:
        # the order of regions is that of the output channels
        content["labels"] = list((dataset_json.get("labels") or {}).items())
    return content


def _of_plans(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What a prediction takes from plans."""
    content = {name: plans.get(name) for name in _PLANS}
    try:
        found = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration).configuration
        found["architecture"] = current_architecture(found["architecture"], "")
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return {**content, configuration: None}  # there is no such configuration, or none that can be read
    if "CTNormalization" in (found.get("normalization_schemes") or ()):
        content[_INTENSITIES] = plans.get(_INTENSITIES)
    return {**content, configuration: {name: found.get(name) for name in _CONFIGURATION}}


def _differences(here: Any, there: Any, name: str = "") -> Iterator[str]:
    """Each value that differs, with its name; objects are entered."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys([*here, *there]):
            yield from _differences(here.get(key), there.get(key), f"{name}.{key}" if name else str(key))
    elif (texts := [json.dumps(value, default=str) for value in (here, there)])[0] != texts[1]:
        shown = [text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…" for text in texts]
        yield f"{name} is {shown[0]} here, and was {shown[1]} in training"
