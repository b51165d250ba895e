"""Candidates for near duplicates among many images, without comparing all pairs.

A forest of random projections: every tree halves the images again and again, at the median along a random direction,
down to leaves of a dozen. A copy, in all eight mirrored and rotated variants, is looked up in the same trees; it falls
into the leaf of its original unless one of the few cuts passes between them, and hardly ever does so in all trees.
Building and looking up cost n·log n, and leaves never grow, however alike the images are.

The idea is that of Annoy (https://github.com/spotify/annoy); ours cuts all nodes of a level at once, in numpy.
"""

import math

import numpy as np

N_VARIANTS = 8
N_TREES = 16
LEAF_SIZE = 12
N_COMPONENTS = 64
MIN_SIMILARITY = 0.75
"""Cosine of two pictures' principal components below which a pair is no candidate."""
_FIT_SAMPLE = 3000
_CHUNK = 8192


def variant(pictures: np.ndarray, number: int) -> np.ndarray:
    """Returns pictures, shape (…, Y, X) with Y = X, mirrored and rotated.

    Args:
        pictures: any number of them.
        number: 0 to 7; odd: mirrored left-right first; then rotated anticlockwise by 90° times `number // 2`.
    """
    if number & 1:
        pictures = pictures[..., ::-1]
    return np.rot90(pictures, number >> 1, axes=(-2, -1))


def inverse_variant(number: int) -> int:
    """Returns the variant that undoes another one."""
    return number if number & 1 else (8 - number) % 8


def find_candidates(coarse: np.ndarray, seed: int = 0) -> np.ndarray:
    """Finds pairs of images that look alike from afar.

    Args:
        coarse: int8, shape (n, kinds, C, C): each image's blurred pictures; a pair has to be alike in one of the kinds.
        seed: of the random directions.

    Returns:
        int32, shape (m, 3), sorted: first, second, variant; first < second, and the variant of the first image looks
        like the second one.
    """
    n_images, n_kinds = coarse.shape[:2]
    found = []
    if n_images > 1:
        for kind in range(n_kinds):
            found.append(_find_in_forest(coarse[:, kind], np.random.default_rng([seed, kind])))
    keys = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    pairs, variants = np.divmod(keys, N_VARIANTS)
    first, second = np.divmod(pairs, max(n_images, 1))
    return np.stack([first, second, variants], axis=1).astype(np.int32)


def _find_in_forest(pictures: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns candidates as numbers (first * n + second) * 8 + variant."""
    points = _project(pictures, random)  # (8, n, components)
    n_images = len(pictures)
    found = []
    one_leaf = n_images <= 8 * LEAF_SIZE
    depth = 0 if one_leaf else math.ceil(math.log2(n_images / LEAF_SIZE))
    for _ in range(1 if one_leaf else N_TREES):
        tree = _Tree(points[0], depth, random)
        for number in range(N_VARIANTS):
            for start in range(0, n_images, _CHUNK):
                found.append(_look_up(tree, points, number, start))
        found = [np.unique(np.concatenate(found))]
    return found[0]


def _look_up(tree: "_Tree", points: np.ndarray, number: int, start: int) -> np.ndarray:
    queries = points[number, start : start + _CHUNK]
    members = tree.members(queries)  # (q, leaf)
    similarity = np.matmul(points[0][members], queries[:, :, None])[:, :, 0]
    row, column = np.nonzero(similarity >= MIN_SIMILARITY)
    query, member = row.astype(np.int64) + start, members[row, column].astype(np.int64)
    forward, backward = query < member, query > member  # an image that looks like its own mirror image is no pair
    n_images = points.shape[1]
    return np.concatenate(
        [
            (query[forward] * n_images + member[forward]) * N_VARIANTS + number,
            (member[backward] * n_images + query[backward]) * N_VARIANTS + inverse_variant(number),
        ]
    )


def _project(pictures: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns all variants of all pictures as unit vectors of their principal components: (8, n, components)."""
    n_images, width = len(pictures), pictures.shape[-1] * pictures.shape[-2]
    sample = pictures[random.permutation(n_images)[:_FIT_SAMPLE]]
    basis = _principal_components(sample, width)
    points = np.empty((N_VARIANTS, n_images, basis.shape[1]), np.float32)
    for number in range(N_VARIANTS):
        for start in range(0, n_images, _CHUNK):
            part = variant(pictures[start : start + _CHUNK], number)
            points[number, start : start + _CHUNK] = _unit(part.reshape(len(part), width).astype(np.float32) @ basis)
    return points


def _principal_components(sample: np.ndarray, width: int) -> np.ndarray:
    """Of all variants of some pictures, the directions of largest variance: (width, components), orthonormal."""
    variants = (_unit(variant(sample, n).reshape(len(sample), width).astype(np.float32)) for n in range(N_VARIANTS))
    if N_VARIANTS * len(sample) < width:  # few pictures: the smaller of the two products
        rows = np.concatenate(list(variants))
        return np.linalg.qr(rows.T @ np.linalg.eigh(rows @ rows.T)[1][:, -N_COMPONENTS:])[0]
    covariance = np.zeros((width, width), np.float64)
    for flat in variants:
        covariance += flat.T @ flat
    return np.linalg.eigh(covariance)[1][:, -N_COMPONENTS:].astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


class _Tree:
    """One tree: the images in leaves of equal size (give or take one)."""

    def __init__(self, points: np.ndarray, depth: int, random: np.random.Generator) -> None:
        n_points, n_components = points.shape
        self._directions = random.normal(size=(depth, n_components)).astype(np.float32)
        self._cuts: list[np.ndarray] = []
        self._order = np.arange(n_points)
        for level in range(depth):
            projected = (points @ self._directions[level])[self._order]
            bounds = _bounds(n_points, level)
            node = np.repeat(np.arange(1 << level), np.diff(bounds))
            rank = np.lexsort((projected, node))
            self._order, projected = self._order[rank], projected[rank]
            middle = _bounds(n_points, level + 1)[1::2]
            self._cuts.append((projected[middle - 1] + projected[np.minimum(middle, n_points - 1)]) / 2)
        self._bounds = _bounds(n_points, depth)

    def members(self, queries: np.ndarray) -> np.ndarray:
        """Returns the images of the leaf that each query falls into: (queries, leaf size)."""
        node = np.zeros(len(queries), np.int64)
        for direction, cuts in zip(self._directions, self._cuts, strict=True):
            node = 2 * node + (queries @ direction > cuts[node])
        start, stop = self._bounds[node], self._bounds[node + 1]
        width = int(np.diff(self._bounds).max())
        # a leaf that is one shorter than others shows its last image twice
        return self._order[np.minimum(start[:, None] + np.arange(width), stop[:, None] - 1)]


def _bounds(n_points: int, level: int) -> np.ndarray:
    """Returns where the nodes of a level begin and end in a tree's order; those of a level are among the next one's."""
    return np.arange((1 << level) + 1, dtype=np.int64) * n_points >> level
