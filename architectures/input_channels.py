"""2.5-D input: a 2-D network that sees the neighbours of a slice as further channels.

A configuration of the plans that names ``neighbouring_slices: k`` feeds the network 2k+1 slices. ``dataset.json`` still
lists the channels of one slice, and nnU-Net counts those; whoever builds the network or checks its input multiplies.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["NEIGHBOURING_SLICES", "neighbouring_slices", "num_network_channels"]

NEIGHBOURING_SLICES = "neighbouring_slices"


def neighbouring_slices(configuration: Mapping[str, Any]) -> int:
    """Slices on each side that join a slice as channels; 0 where the configuration names none.

    Args:
        configuration: one entry of the plans' ``configurations``.

    Raises:
        ValueError: not a whole number of slices, or a 3-D configuration.
    """
    count = configuration.get(NEIGHBOURING_SLICES, 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f'"{NEIGHBOURING_SLICES}" of the plans is {count!r}; write a whole number, such as 1, or 0')
    if count and len(configuration["patch_size"]) != 2:
        raise ValueError(
            f'"{NEIGHBOURING_SLICES}" belongs to 2-D configurations, the patch size here is '
            f"{list(configuration['patch_size'])}; remove it from the plans"
        )
    return count


def num_network_channels(num_channels: int, configuration: Mapping[str, Any]) -> int:
    """Channels that the network takes, where the images have ``num_channels``.

    Raises:
        ValueError: see :func:`neighbouring_slices`.
    """
    return num_channels * (2 * neighbouring_slices(configuration) + 1)
