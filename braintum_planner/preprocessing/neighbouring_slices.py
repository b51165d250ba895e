"""2.5-D input: each slice of a volume with its neighbours as channels."""

import logging
from collections.abc import Sequence

import numpy as np

__all__ = ["check_neighbours", "stack_neighbouring_slices", "through_plane_offsets"]

_DISTANCE_RATIO = 2.0  # distances between slices that differ by more than this among the images are worth a warning
_logger = logging.getLogger("braintum")


def through_plane_offsets(count: int) -> list[int]:
    """Order of the slices among the channels: the slice itself, one before, one after, two before, …

    The slice itself comes first, so that what nnU-Net addresses by channel number stays true: the first channels are
    those of ``dataset.json`` (after augmentation it sets them to zero outside of that slice's mask).
    """
    return [0, *(offset for distance in range(1, count + 1) for offset in (-distance, distance))]


def stack_neighbouring_slices(image: np.ndarray, count: int) -> np.ndarray:
    """Append ``count`` slices of each side to the channels of every slice.

    Neighbours are adjacent slices, whatever their distance in mm. Beyond the first and the last slice the volume goes
    on with that slice.

    Args:
        image: (C, Z, Y, X), slices along Z.
        count: neighbours on each side.

    Returns:
        (C · (2 · count + 1), Z, Y, X): all channels of the slice itself, then those of each neighbour, in the order of
        :func:`through_plane_offsets`.
    """
    slices = np.arange(image.shape[1])
    last = image.shape[1] - 1
    return np.concatenate([image[:, np.clip(slices + offset, 0, last)] for offset in through_plane_offsets(count)])


def check_neighbours(dataset_name: str, num_slices: Sequence[int], distances: Sequence[float]) -> None:
    """Make sure that a data set has neighbouring slices; warn where their distances differ much.

    Args:
        dataset_name: for the messages.
        num_slices: of each image, along the plans' first axis.
        distances: between slices, of each image, in mm.

    Raises:
        ValueError: all images are single slices.
    """
    if max(num_slices) == 1:
        raise ValueError(
            f"{dataset_name} holds single slices, which have no neighbours; plan with BrainTumPlanner, or convert the "
            "volumes that the slices come from"
        )
    if max(distances) > _DISTANCE_RATIO * min(distances):
        _logger.warning(
            "%s: slices are %g to %g mm apart; neighbouring slices are the adjacent ones, at whatever distance",
            dataset_name,
            min(distances),
            max(distances),
        )
