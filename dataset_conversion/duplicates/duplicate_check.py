"""Decides which candidates are copies: pictures are aligned and their fine structure compared.

Two neighbouring slices of a patient agree in their outlines but not in the folds of the cortex; a copy agrees in
everything, wherever its pixels were interpolated. The score is the correlation of the locally normalised pictures.
Copies of the whole frame are compared as they are; others after an alignment by shift and scale along both axes
(cropping and padding change nothing else), from blurred to fine, by Gauss-Newton steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from braintum.conversion.duplicates.duplicate_index import variant
from braintum.conversion.duplicates.fingerprints import FRAME, HEAD

COPY_SCORE = 0.94
"""Correlation from which two images are copies of each other.

Set on the 3064 slices of the Figshare data set: neighbouring slices and repeated scans of one patient have at most
0.931 there, planted copies at least 0.97, see benchmarks/data/duplicate_recall.py.
"""
_CERTAIN = 0.97
"""Correlation from which no alignment is tried."""
_MIN_COARSE = 0.66
"""Correlation of the blurred pictures, as they are, below which a candidate is given up."""
_MIN_COARSE_ALIGNED = 0.90
"""The same after the alignment."""
_COARSE_STEPS = 4
_FINE_STEPS = 4
_BATCH = 128
_MAX_SHIFT = 0.12
"""Largest shift, and change of scale, of an alignment, relative to the picture's width."""


@dataclass(frozen=True)
class Check:
    """The result for candidates, in their order.

    Attributes:
        scores: correlation, at most 1.
        frames: the same of the whole frames as they are: clearly lower where one image is a crop of the other.
    """

    scores: np.ndarray
    frames: np.ndarray


def check_candidates(fine: Sequence[np.ndarray], coarse: Sequence[np.ndarray], candidates: np.ndarray) -> Check:
    """Scores candidates.

    Args:
        fine: of each image frame and head, int8, (2, F, F).
        coarse: the same, blurred, int8, (2, C, C).
        candidates: (m, 3): first, second, variant.
    """
    scores, frames = np.zeros(len(candidates), np.float32), np.zeros(len(candidates), np.float32)
    order = np.argsort(candidates[:, 2], kind="stable")
    for rows in _batches(order, candidates[:, 2]):
        scores[rows], frames[rows] = _check_batch(fine, coarse, candidates[rows])
    return Check(scores, frames)


def _batches(order: np.ndarray, variants: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts the candidates, sorted by variant, into batches of one variant each."""
    edges = np.flatnonzero(np.diff(variants[order])) + 1
    for part in np.split(order, edges):
        for start in range(0, len(part), _BATCH):
            yield part[start : start + _BATCH]


def _check_batch(
    fine: Sequence[np.ndarray], coarse: Sequence[np.ndarray], candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    first, second, number = candidates[:, 0], candidates[:, 1], int(candidates[0, 2])

    def load(pictures: Sequence[np.ndarray], rows: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
        return _load(pictures, second[rows], kind, 0), _load(pictures, first[rows], kind, number)

    everything = np.arange(len(candidates))
    alike = [_correlation(*load(coarse, everything, kind)) >= _MIN_COARSE for kind in (FRAME, HEAD)]
    scores = np.full(len(candidates), -1, np.float32)
    frames = scores.copy()
    for kind in (FRAME, HEAD):
        rows = np.flatnonzero(alike[kind] & (scores < _CERTAIN))
        if len(rows):
            scores[rows] = np.maximum(scores[rows], _correlation(*load(fine, rows, kind)))
        if kind == FRAME:
            frames = scores.copy()
    for kind in (HEAD, FRAME):
        rows = np.flatnonzero(alike[kind] & (scores < _CERTAIN))
        if not len(rows):
            continue
        fixed, moving = load(coarse, rows, kind)
        alignment = _align(fixed, moving, _identity(len(rows)), _COARSE_STEPS)
        hopeful = np.flatnonzero(_aligned_correlation(fixed, moving, alignment) >= _MIN_COARSE_ALIGNED)
        rows, alignment = rows[hopeful], alignment[hopeful]
        if len(rows):
            fixed, moving = load(fine, rows, kind)
            alignment = _align(fixed, moving, alignment, _FINE_STEPS)
            scores[rows] = np.maximum(scores[rows], _aligned_correlation(fixed, moving, alignment))
    return scores, frames


def _load(pictures: Sequence[np.ndarray], rows: np.ndarray, kind: int, number: int) -> np.ndarray:
    stacked = np.stack([pictures[row][kind] for row in rows])
    return np.ascontiguousarray(variant(stacked, number), np.float32)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    return np.einsum("ij,ij->i", one, other) / np.maximum(norms, 1e-6)


def _identity(n_pairs: int) -> np.ndarray:
    """Alignments that change nothing; columns: scale - 1 and shift along y, the same along x; coordinates -1 to 1."""
    return np.zeros((n_pairs, 4), np.float32)


def _weights(alignment: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrices of linear interpolation, (pairs, size, size), along y and along x."""
    axis = _axis(size)
    pixel = np.arange(size, dtype=np.float32)
    matrices = []
    for scale, shift in ((alignment[:, 0], alignment[:, 1]), (alignment[:, 2], alignment[:, 3])):
        place = (1 + scale[:, None]) * axis + shift[:, None]
        place = (place + 1) * (size / 2) - 0.5
        matrices.append(np.maximum(1 - np.abs(place[:, :, None] - pixel), 0))
    return matrices[0], matrices[1]


def _axis(size: int) -> np.ndarray:
    return ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size) - 1


def _warp(moving: np.ndarray, alignment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the moving pictures aligned, and where they have pixels (0 to 1)."""
    along_y, along_x = _weights(alignment, moving.shape[-1])
    warped = np.matmul(np.matmul(along_y, moving), along_x.transpose(0, 2, 1))
    inside = along_y.sum(axis=2)[:, :, None] * along_x.sum(axis=2)[:, None, :]
    return warped, inside


def _align(fixed: np.ndarray, moving: np.ndarray, alignment: np.ndarray, steps: int) -> np.ndarray:
    """Improves alignments: least squares of the difference of the pictures, both of unit variance."""
    n_pairs, size = len(fixed), fixed.shape[-1]
    axis = _axis(size)
    fixed = _standardise(fixed)
    moving = _standardise(moving)
    limit = np.float32(2 * _MAX_SHIFT)
    for _ in range(steps):
        warped, inside = _warp(moving, alignment)
        gradient_y, gradient_x = np.gradient(warped, 2 / size, axis=(1, 2))
        gradient_y *= inside
        gradient_x *= inside
        columns = np.stack([gradient_y * axis[:, None], gradient_y, gradient_x * axis, gradient_x], axis=1)
        columns = columns.reshape(n_pairs, 4, -1)
        difference = ((fixed - warped) * inside).reshape(n_pairs, -1, 1)
        normal = np.matmul(columns, columns.transpose(0, 2, 1))
        normal += 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(4, dtype=np.float32)
        step = np.linalg.solve(normal, np.matmul(columns, difference))[:, :, 0]
        alignment = np.clip(alignment + step, -limit, limit)
    return alignment


def _standardise(pictures: np.ndarray) -> np.ndarray:
    spread = pictures.std(axis=(1, 2), keepdims=True)
    return (pictures - pictures.mean(axis=(1, 2), keepdims=True)) / np.maximum(spread, 1e-6)


def _aligned_correlation(fixed: np.ndarray, moving: np.ndarray, alignment: np.ndarray) -> np.ndarray:
    """Returns the correlation within the part that both pictures show."""
    warped, inside = _warp(moving, alignment)
    inside = (inside > 0.99).astype(np.float32)
    area = np.maximum(inside.sum(axis=(1, 2)), 1)
    sums = [np.einsum("nyx,nyx->n", inside, part) for part in (fixed, warped)]
    fixed = (fixed - (sums[0] / area)[:, None, None]) * inside
    warped = (warped - (sums[1] / area)[:, None, None]) * inside
    return _correlation(fixed, warped)
