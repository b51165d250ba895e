"""Resampling by a grid as batchgeneratorsv2's ``SpatialTransform`` does it, on batches and on any device."""

from collections.abc import Sequence

import torch
from torch.nn import functional

_PAD_MODES = {"zeros": "zeros", "constant": "zeros", "border": "border", "reflection": "reflection"}
_SCORE = 1000.0  # of a label's own voxels. In float16 it makes near ties ties, as in batchgeneratorsv2


def affine_matrices(angles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """batchgeneratorsv2's matrices: scaling, then rotation; in 2-D by the last angle.

    Args:
        angles: (B, d) in radians, about the axes.
        factors: (B, d).

    Returns:
        (B, d, d).
    """
    batch_size, num_axes = angles.shape
    cosine, sine = angles.cos(), angles.sin()
    rotation = torch.eye(num_axes, dtype=angles.dtype).repeat(batch_size, 1, 1)
    # row and column of the plane of each rotation: of a 3-D one, about the axes 0, 1 and 2 in this order
    planes = {1: (0, 1)} if num_axes == 2 else {0: (1, 2), 1: (2, 0), 2: (0, 1)}
    for axis, (first, second) in planes.items():
        turn = torch.eye(num_axes, dtype=angles.dtype).repeat(batch_size, 1, 1)
        turn[:, first, first] = turn[:, second, second] = cosine[:, axis]
        turn[:, first, second], turn[:, second, first] = -sine[:, axis], sine[:, axis]
        rotation = turn @ rotation
    return rotation * factors[:, None]


def sampling_grid(
    affine: torch.Tensor, centre: torch.Tensor, patch_size: Sequence[int], size: Sequence[int]
) -> torch.Tensor:
    """Grid (n, [Z,] Y, X, d) for ``grid_sample``.

    Args:
        affine: (n, d, d) float32.
        centre: (n, d) float32, where in the source the grid has its centre, in pixels from the source's corner.
        patch_size: of the grid.
        size: of the source.
    """
    num_axes = len(patch_size)
    offsets = [
        (torch.arange(edge, device=affine.device, dtype=affine.dtype) - (edge - 1) / 2).view(
            [-1 if other == axis else 1 for other in range(num_axes)]
        )
        for axis, edge in enumerate(patch_size)
    ]
    axes = []
    for axis, edge in enumerate(size):
        position = (centre[:, axis] - edge / 2).view(-1, *[1] * num_axes)
        for other, offset in enumerate(offsets):
            position = position + affine[:, axis, other].view(-1, *[1] * num_axes) * offset
        axes.append(position * (2 / edge))
    return torch.stack(axes[::-1], -1)  # grid_sample wants x first


def sample(
    values: torch.Tensor, grid: torch.Tensor, mode: str, border: str, constant: float, align_corners: bool
) -> torch.Tensor:
    """``grid_sample`` that also pads with a constant.

    Args:
        values: (n, C, [Z,] Y, X) float32.
        grid: (n, [z,] y, x, d).
        mode: nearest, bilinear or bicubic.
        border: zeros, constant, border or reflection.
        constant: what lies beyond, with zeros or constant.
        align_corners: see ``grid_sample``.

    Returns:
        (n, C, [z,] y, x).
    """
    sampled = functional.grid_sample(
        values - constant if constant else values,
        grid,
        mode=mode,
        padding_mode=_PAD_MODES[border],
        align_corners=align_corners,
    )
    return sampled + constant if constant else sampled


def sample_labels(
    target: torch.Tensor,
    grid: torch.Tensor,
    labels: Sequence[int],
    mode: str,
    border: str,
    padding: int,
    tiebreak: str,
    align_corners: bool,
) -> torch.Tensor:
    """The label with the highest interpolated score at each voxel.

    Args:
        target: (n, 1, [Z,] Y, X), any integers.
        grid: (n, [z,] y, x, d).
        labels: all that may occur, ascending.
        mode: of the scores; ``nearest`` takes the nearest voxel's label.
        border: zeros, constant, border or reflection.
        padding: the label beyond the border, with zeros or constant.
        tiebreak: of equal scores: nearest, lowest or highest.
        align_corners: see ``grid_sample``.

    Returns:
        (n, 1, [z,] y, x) of the dtype of ``target``.
    """
    pads = _PAD_MODES[border] == "zeros"
    beyond = float(padding) if pads else 0.0
    nearest = sample(target.float(), grid, "nearest", border, beyond, align_corners).to(target.dtype)
    if mode == "nearest":
        return nearest
    result = torch.full_like(nearest, labels[0])
    best = torch.full(nearest.shape, -torch.inf, dtype=torch.float16, device=nearest.device)
    own = best  # score of the nearest voxel's label
    for label in labels:
        indicator = torch.eq(target, label).float().mul_(_SCORE)
        beyond = _SCORE if pads and label == padding else 0.0
        score = sample(indicator, grid, mode, border, beyond, align_corners).half()
        result.masked_fill_(score >= best if tiebreak == "highest" else score > best, label)
        best = torch.maximum(best, score)
        own = torch.where(nearest == label, score, own)
    return torch.where(own == best, nearest, result) if tiebreak == "nearest" else result
