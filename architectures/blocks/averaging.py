"""Averages over a coarser grid, as torch's adaptive pooling, which ONNX lacks and CUDA does not repeat exactly."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

_AVERAGE_POOL: dict[int, Any] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def average_to(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average (B, C, [Z,] Y, X) to another grid; untouched where it has that size.

    Args:
        x: to average.
        size: of the grid, ([Z,] Y, X). Where an edge does not divide that of ``x``, neighbouring means share voxels.
    """
    edges = list(zip(x.shape[2:], size, strict=True))
    if all(before == after for before, after in edges):
        return x
    if all(before % after == 0 for before, after in edges):
        return _AVERAGE_POOL[len(edges)](x, [before // after for before, after in edges])
    has_autocast = torch.amp.is_autocast_available(x.device.type)  # the device "meta" has none
    with torch.autocast(x.device.type, enabled=False) if has_autocast else nullcontext():
        averaged = x.float()
        for axis, (before, after) in enumerate(edges, 2):
            averaged = (averaged.movedim(axis, -1) @ _averaging_matrix(before, after, x.device)).movedim(-1, axis)
    return averaged.to(x.dtype)


def _averaging_matrix(before: int, after: int, device: torch.device) -> torch.Tensor:
    """(before, after): column i averages from floor(i · before / after) to ceil((i + 1) · before / after)."""
    columns, rows = torch.arange(after, device=device), torch.arange(before, device=device)[:, None]
    start, end = columns * before // after, ((columns + 1) * before + after - 1) // after
    return ((rows >= start) & (rows < end)) / (end - start)
