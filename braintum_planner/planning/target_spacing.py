"""``-overwrite_target_spacing``, for 2-D data too."""

from collections.abc import Sequence

import numpy as np


def complete_target_spacing(
    spacing: Sequence[float] | None, dataset_name: str, spacings_of_2d: Sequence[Sequence[float]] | None
) -> list[float] | None:
    """Target spacing with three values; the first of 2-D data is the data's own (a small one means 3-D to nnU-Net).

    Args:
        spacing: what the user asks for, ([z,] y, x) in mm (pixels for PNG); None: nothing.
        dataset_name: for messages.
        spacings_of_2d: (z, y, x) of every case of 2-D data; None for 3-D data.

    Raises:
        ValueError: wrong number of values or a value that is not positive.
    """
    if spacing is None:
        return None
    if any(not np.isfinite(edge) or edge <= 0 for edge in spacing):
        raise ValueError(f"-overwrite_target_spacing takes positive numbers, got {list(spacing)}")
    if spacings_of_2d is None:
        if len(spacing) != 3:
            raise ValueError(
                f"{dataset_name} is 3-D: -overwrite_target_spacing takes three values (z y x, in mm), got "
                f"{list(spacing)}"
            )
        return list(spacing)
    if len(spacing) not in (2, 3):
        raise ValueError(
            f"{dataset_name} is 2-D: -overwrite_target_spacing takes two values (y x), got {list(spacing)}"
        )
    through_plane = float(np.median(np.vstack(spacings_of_2d)[:, 0]))
    return [max(through_plane, *spacing[-2:]), *spacing[-2:]]
