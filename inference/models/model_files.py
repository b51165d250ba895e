"""Plans and ``dataset.json`` of a model, checked before anything in them is used.

nnU-Net imports and calls what plans name: the network, its layers, normalisation schemes, resampling functions. A
model from elsewhere could name anything, and ask for sizes that no machine has. So classes have to be networks and
layers of torch.nn, dynamic-network-architectures or this package, other names nnU-Net's own, and numbers bounded.
"""

import os
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from braintum.architectures.old_names import current_architecture
from braintum.conversion.files import json_files
from braintum.conversion.files.json_files import CLASSIFICATION_SCHEMA
from braintum.conversion.files.orientation import ORIENTATIONS_ENTRY
from braintum.inference.models.volume_orientation import OrientedPlansManager

FINGERPRINT_FILE = "dataset_fingerprint.json"
ALLOWED_CLASSES_VARIABLE = "braintum_allowed_classes"
"""Environment variable: dotted paths, separated by commas, of further classes that a model's plans may name."""

_NETWORKS = ("dynamic_network_architectures.", "braintum.architectures.")
_LAYERS = ("torch.nn.", *_NETWORKS)
_AGAIN = "copy the model again"
_MAX_PARAMETERS = 4_000_000_000

_NAME = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,199}$"}
_CLASS_PATH = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){1,20}$"}
_RESAMPLING = {"type": "string", "pattern": r"^(resample_[a-z_]{1,100}|no_resampling_hack)$"}
_AXES = {"type": "array", "minItems": 3, "maxItems": 3, "items": {"enum": [0, 1, 2]}, "uniqueItems": True}
_DEFINITIONS = {
    # arguments of networks and functions
    "value": {
        "anyOf": [
            {"type": ["null", "boolean"]},
            {"type": "number", "minimum": -8192, "maximum": 8192},
            {"type": "string", "maxLength": 200},
            {"type": "array", "maxItems": 256, "items": {"$ref": "#/$defs/value"}},
            {"type": "object", "maxProperties": 64, "additionalProperties": {"$ref": "#/$defs/value"}},
        ]
    },
}
_ARGUMENTS = {"type": "object", "maxProperties": 64, "additionalProperties": {"$ref": "#/$defs/value"}}

_CONFIGURATION = {
    "$defs": _DEFINITIONS,
    "type": "object",
    "required": [
        *("preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture"),
        *("resampling_fn_data", "resampling_fn_data_kwargs"),
        *("resampling_fn_probabilities", "resampling_fn_probabilities_kwargs"),
    ],
    "properties": {
        "preprocessor_name": _NAME,
        "batch_size": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "patch_size": {
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {"type": "integer", "minimum": 1, "maximum": 8192},
        },
        "spacing": {
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
        },
        "normalization_schemes": {"type": "array", "minItems": 1, "maxItems": 256, "items": _NAME},
        "use_mask_for_norm": {"type": "array", "maxItems": 256, "items": {"type": "boolean"}},
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_data_kwargs": _ARGUMENTS,
        "resampling_fn_seg_kwargs": _ARGUMENTS,
        "resampling_fn_probabilities_kwargs": _ARGUMENTS,
        "neighbouring_slices": {"type": "integer", "minimum": 0, "maximum": 32},
        "slice_edge": {"type": "integer", "minimum": 1, "maximum": 8192},
        "slice_crop": {"type": "boolean"},
        "architecture": {
            "type": "object",
            "required": ["network_class_name", "arch_kwargs", "_kw_requires_import"],
            "properties": {
                "network_class_name": _CLASS_PATH,
                "arch_kwargs": _ARGUMENTS,
                "_kw_requires_import": {"type": "array", "maxItems": 32, "items": _NAME},
            },
        },
    },
}

_PLANS = {
    "type": "object",
    "required": [
        *("dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward"),
        "configurations",
    ],
    "properties": {
        "dataset_name": {"type": "string", "maxLength": 200},
        "plans_name": {"type": "string", "maxLength": 200},
        "image_reader_writer": _NAME,
        "label_manager": {"anyOf": [{"type": "null"}, _NAME]},
        "transpose_forward": _AXES,
        "transpose_backward": _AXES,
        "configurations": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 64,
            "additionalProperties": {"type": "object"},
        },
        "classification": CLASSIFICATION_SCHEMA,
        ORIENTATIONS_ENTRY: {
            "type": "object",
            "maxProperties": 48,
            "propertyNames": {"pattern": "^[RLAPIS]{3}$"},
            "additionalProperties": {"type": "integer", "minimum": 1},
        },
    },
}


def read_dataset_json(file: str | os.PathLike[str]) -> dict[str, Any]:
    """``dataset.json`` of a model.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or says what no data set can.
    """
    _check_is_there(Path(file))
    return json_files.read_dataset_json(file, _AGAIN)


def read_plans(file: str | os.PathLike[str]) -> PlansManager:
    """``plans.json`` of a model; see :func:`checked_configuration` for the rest of the check.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or names what does not belong into plans.
    """
    file = Path(file)
    _check_is_there(file)
    content = json_files.read_json_object(file, _AGAIN)
    json_files.check_schema(content, _PLANS, file, _AGAIN)
    return OrientedPlansManager(content)


def checked_configuration(plans: PlansManager, name: str, file: str | os.PathLike[str]) -> ConfigurationManager:
    """A configuration whose classes and sizes may be used; classes have the names of now, whatever the plans say.

    Args:
        plans: of :func:`read_plans`.
        name: of the configuration, such as 2d.
        file: of the plans, for messages.

    Raises:
        ValueError: no such configuration, or it names a class or a size that it may not. Further classes are allowed
            by the environment variable ``braintum_allowed_classes``: dotted paths, separated by commas.
    """
    file = Path(file)
    try:
        configuration = plans.get_configuration(name)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # unknown, or inheritance that does not end
        raise ValueError(f"{file}: configuration {name}: {error}; copy the model again") from error
    content = configuration.configuration
    json_files.check_schema(content, _CONFIGURATION, file, _AGAIN, f"configuration {name}, ")
    if len(content["patch_size"]) != len(content["spacing"]):
        raise ValueError(f"{file}: configuration {name}: patch size and spacing differ in dimensions; copy it again")
    architecture = content["architecture"] = current_architecture(content["architecture"], file)
    _check_class(architecture["network_class_name"], _NETWORKS, file)
    for argument in architecture["_kw_requires_import"]:
        layer = architecture["arch_kwargs"].get(argument)
        if layer is not None:
            _check_class(layer, _LAYERS, file)
    return configuration


def check_size(build: Callable[[], nn.Module], file: str | os.PathLike[str]) -> None:
    """Refuse a network that nobody has memory for, before there is any.

    Args:
        build: makes the network; called without memory for parameters.
        file: of the plans, for messages.

    Raises:
        ValueError: it has more than four billion parameters, or cannot be built.
    """
    try:
        with torch.device("meta"):
            network = build()
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError, ImportError) as error:
        raise ValueError(f"{file}: its network cannot be built ({error}); copy the model again") from error
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > _MAX_PARAMETERS:
        raise ValueError(f"{file}: its network has {count} parameters, more than {_MAX_PARAMETERS}; it is not loaded")


def _check_class(path: Any, prefixes: tuple[str, ...], file: Path) -> None:
    """A class path may name a network or layer of ``prefixes``, or what the user allows."""
    allowed = os.environ.get(ALLOWED_CLASSES_VARIABLE, "").replace(" ", "").split(",")
    if path in allowed:
        return
    if not isinstance(path, str) or not path.startswith(prefixes):
        raise ValueError(
            f"{file} names {path!r} as a part of the network; only classes of {', '.join(prefixes)} are used. If you "
            f"trust the model, allow it with the environment variable {ALLOWED_CLASSES_VARIABLE}={path}"
        )
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{file} names {path}, which cannot be imported: {error}") from error
    if found is None and prefixes == _NETWORKS and path.startswith(_NETWORKS[0]):
        return  # moved since: nnU-Net looks for its last part there
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{file} names {path} as a part of the network, which is no network and no layer")


def _check_is_there(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} is no folder of a trained model: {file.name} is missing")
