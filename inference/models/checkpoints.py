"""Checkpoints without code: nnU-Net unpickles model files, and a pickle can run anything."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from braintum.architectures.numpy_scalars import numpy_scalars_allowed

# what torch raises for damaged files, depending on where the damage is
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError)


def load_checkpoint_safely(file: str | Path, trust: bool = False) -> dict[str, Any]:
    """An nnU-Net checkpoint, read to the CPU with torch's weights-only loader.

    Args:
        file: written by one of our trainers or by stock nnU-Net.
        trust: unpickle everything in it, which runs whatever code it holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a checkpoint of nnU-Net, or with objects in it that only unrestricted unpickling
            could restore.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        with numpy_scalars_allowed():
            checkpoint = torch.load(file, map_location="cpu", weights_only=not trust)
    except _DAMAGED as error:
        code = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
        if code is not None:
            raise ValueError(
                f"{file} would run code when it is loaded ({code[1]}), so it was not loaded; nnU-Net's and this "
                "package's own checkpoints do not. If you know who made it, --trust-checkpoint loads it all the same"
            ) from error
        raise ValueError(
            f"{file} is damaged or truncated, or no checkpoint at all; copy it again, or choose another with -chk"
        ) from error
    missing = {"network_weights", "trainer_name", "init_args"} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise ValueError(f"{file} is no checkpoint of nnU-Net: it lacks {', '.join(sorted(missing))}")
    weights, arguments = checkpoint["network_weights"], checkpoint["init_args"]
    if not (
        isinstance(weights, dict)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items())
        and isinstance(arguments, dict)
        and isinstance(arguments.get("configuration"), str)
        and isinstance(checkpoint["trainer_name"], str)
        and checkpoint["trainer_name"].isidentifier()
    ):
        raise ValueError(f"{file} is no checkpoint of nnU-Net: its weights, trainer or configuration are of odd types")
    return checkpoint


def in_single_precision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that were stored in 16 bits, in 32; others as they are."""
    return {name: values.float() if values.dtype == torch.float16 else values for name, values in weights.items()}


def check_weights(network: nn.Module, checkpoint: Mapping[str, Any], file: str | Path) -> None:
    """Refuse weights that are none of this network.

    Args:
        network: that they are to be loaded into.
        checkpoint: of :func:`load_checkpoint_safely`.
        file: that they come from, for messages.

    Raises:
        ValueError: names or shapes differ, values are not finite, or the mirroring axes are none.
    """
    again = "copy the model again, or choose another checkpoint with -chk"
    weights, expected = checkpoint["network_weights"], network.state_dict()
    if differing := sorted(weights.keys() ^ expected.keys()):
        what = "lacks" if differing[0] in expected else "has weights that the network of the plans has not:"
        raise ValueError(f"{file} {what} {differing[0]} ({len(differing)} names differ); {again}")
    for name, values in weights.items():
        if values.shape != expected[name].shape:
            shapes = f"{tuple(values.shape)}, the network of the plans {tuple(expected[name].shape)}"
            raise ValueError(f"{file}: {name} has shape {shapes}; {again}")
        if not torch.isfinite(values).all():
            raise ValueError(f"{file}: {name} holds NaN or infinity: its training failed, or it is damaged; {again}")
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if axes is not None and not (isinstance(axes, (tuple, list)) and set(axes) <= {0, 1, 2}):
        raise ValueError(f"{file}: cannot mirror along the axes {str(axes)[:100]}; {again}")


def to_builtin(value: Any) -> Any:
    """``value`` with numpy scalars and arrays replaced by Python numbers and lists, containers included.

    Lists and dicts are changed in place and returned; what else there is stays as it is.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        value[:] = [to_builtin(item) for item in value]
    elif isinstance(value, dict):
        for key in value:
            value[key] = to_builtin(value[key])
    elif type(value) is tuple:
        return tuple(to_builtin(item) for item in value)
    return value
