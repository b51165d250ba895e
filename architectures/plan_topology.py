"""Reading the topology from either kind of nnU-Net's plans."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list

_RESIDUAL_ONLY = ("n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels")
_READ_BY_DECODER = (
    "output_channels",
    "strides",
    "kernel_sizes",
    "conv_op",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
)


def plain_arch_kwargs(arch_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of PlainConvUNet from a plan's ``arch_kwargs``.

    Those of PlainConvUNet stay as they are. Those of ResidualEncoderUNet keep stages, features, strides, kernels, norm
    and nonlinearity, and get a U-Net's two convolutions a level, down and up.

    Args:
        arch_kwargs: as the plans hold them, with classes in place of class names; further arguments pass through.
    """
    if "n_blocks_per_stage" not in arch_kwargs:
        return dict(arch_kwargs)
    stages = arch_kwargs["n_stages"]
    plain = {name: value for name, value in arch_kwargs.items() if name not in _RESIDUAL_ONLY}
    return {**plain, "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}


def topology_for_decoder(encoder: Any) -> SimpleNamespace:
    """What nnU-Net's UNetDecoder reads of an encoder.

    Given an encoder itself, it registers it once more, and state dicts hold every weight of it twice.
    """
    return SimpleNamespace(**{name: getattr(encoder, name) for name in _READ_BY_DECODER})


def per_level(name: str, value: Any, levels: int) -> list:
    """An argument that plans give once or a level, as a list with one entry a level.

    Raises:
        ValueError: a list of another length.
    """
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries; give one for each of the {levels} levels")
    return values


def per_level_and_axis(name: str, value: Any, levels: int, conv_op: Any) -> list[list[int]]:
    """The same for kernel sizes and strides: one list a level, with one entry an axis of ``conv_op``."""
    return [maybe_convert_scalar_to_list(conv_op, entry) for entry in per_level(name, value, levels)]
