"""Finds exact and near duplicates among images: re-encoded, resized, cropped, mirrored, rotated by 90°.

Three steps, none of which compares all pairs: a fingerprint of every image (`fingerprints`), candidates from an index
(`duplicate_index`), and a check of the candidates (`duplicate_check`) that tells a copy from the neighbouring slice of
the same patient. Rotation by other angles, and copies with other contents painted over, are not looked for. A volume is
represented by its central slice, so that copies of volumes are found, also mirrored ones, and two volumes whose central
slices are the same image are taken for copies.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from braintum.conversion.duplicates.duplicate_check import COPY_SCORE, check_candidates
from braintum.conversion.duplicates.duplicate_index import find_candidates, inverse_variant
from braintum.conversion.duplicates.fingerprints import Fingerprint, fingerprint
from braintum.conversion.files.parallel import run_cases

logger = logging.getLogger(__name__)

KINDS = ("exact", "re-encoded", "resized", "cropped", "mirrored", "rotated")
TRANSFORMATIONS = (
    "none",
    "mirrored left-right",
    "rotated by 90° anticlockwise",
    "mirrored at the main diagonal",
    "rotated by 180°",
    "mirrored top-bottom",
    "rotated by 90° clockwise",
    "mirrored at the other diagonal",
)
"""By the number of the variant, see `duplicate_index.variant`."""
_CROPPED = 0.03
"""Of copies that are no crops, the whole frames agree almost as well (score) as what was aligned."""
_MAX_LISTED = 50
"""Of more copies of one file, only the pairs with the first are listed."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that show the same.

    Attributes:
        first: index of an image.
        second: index of the other one, the larger of the two.
        kind: one of `KINDS`: `exact` files are equal byte for byte; `mirrored` and `rotated` copies may be re-encoded,
            resized and cropped too.
        transformation: one of `TRANSFORMATIONS`: what turns the first image into the second.
        score: correlation of the fine structure, 1 for exact copies.
    """

    first: int
    second: int
    kind: str
    transformation: str
    score: float


def near_duplicate_groups(paths: Sequence[Path], n_processes: int) -> list[list[int]]:
    """Groups images that are exact or near duplicates of each other, directly or through others.

    Args:
        paths: image files.
        n_processes: number of worker processes; 1 stays in this process.

    Returns:
        Groups of at least two indices into `paths`, sorted within and by their first.

    Raises:
        ValueError: an image is not readable; the message names all of them.
        FileNotFoundError: there is no such file.
    """
    return group_pairs(find_duplicates(paths, n_processes))


def find_duplicates(
    paths: Sequence[Path], n_processes: int, progress: str = "looking for duplicates"
) -> list[DuplicatePair]:
    """Finds pairs of images that are exact or near duplicates of each other.

    Args:
        paths: image files.
        n_processes: number of worker processes; 1 stays in this process.
        progress: text of the progress bar.

    Returns:
        The pairs, by first and second image. Of many copies of one image not every pair is listed, but as many as
        connect them (see `group_pairs`).

    Raises:
        ValueError: an image is not readable; the message names all of them.
        FileNotFoundError: there is no such file.
    """
    prints = read_fingerprints(paths, n_processes, progress)
    problems = [image.problem for image in prints if image.problem]
    if problems:
        raise ValueError(
            f"{len(problems)} image(s) cannot be searched for duplicates:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return match_fingerprints(prints)


def read_fingerprints(
    paths: Sequence[Path], n_processes: int, progress: str = "looking for duplicates"
) -> list[Fingerprint]:
    """Reads what `match_fingerprints` needs of every image; unreadable ones carry a `problem`."""
    return run_cases(fingerprint, [Path(path) for path in paths], n_processes, progress)


def match_fingerprints(prints: Sequence[Fingerprint]) -> list[DuplicatePair]:
    """Finds pairs of duplicates; images that were not readable or are constant are compared byte for byte only."""
    copies: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(prints):
        copies[image.sha256].append(index)
    pairs = [
        DuplicatePair(first, second, "exact", TRANSFORMATIONS[0], 1.0)
        for members in copies.values()
        for first, second in _listed(members, members)
    ]
    unique = [members[0] for members in copies.values() if prints[members[0]].fine is not None]
    for one, other, number, score, is_crop in _near_duplicates([prints[index] for index in unique]):
        first, second = unique[one], unique[other]
        kind = _kind(prints[first], prints[second], number, is_crop)
        for left, right in _listed(copies[prints[first].sha256], copies[prints[second].sha256]):
            # a variant found from left to right; its inverse leads back
            turned = number if left < right else inverse_variant(number)
            pairs.append(DuplicatePair(min(left, right), max(left, right), kind, TRANSFORMATIONS[turned], score))
    logger.info("%d images compared: %d pairs of duplicates", len(prints), len(pairs))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def group_pairs(pairs: Sequence[DuplicatePair]) -> list[list[int]]:
    """Returns the groups that pairs connect: each of at least two indices, sorted within and by their first."""
    groups = DisjointSet(index for pair in pairs for index in (pair.first, pair.second))
    for pair in pairs:
        groups.merge(pair.first, pair.second)
    return sorted(sorted(group) for group in groups.subsets())


def _near_duplicates(prints: Sequence[Fingerprint]) -> list[tuple[int, int, int, float, bool]]:
    """Returns first, second, variant, score and whether it is a crop, of pairs of images whose files differ."""
    if len(prints) < 2:
        return []
    fine = [image.fine for image in prints if image.fine is not None]
    coarse = [image.coarse for image in prints if image.coarse is not None]
    candidates = find_candidates(np.stack(coarse))
    check = check_candidates(fine, coarse, candidates)
    accepted = np.flatnonzero(check.scores >= COPY_SCORE)
    best: dict[tuple[int, int], tuple[int, int, int, float, bool]] = {}
    for row in accepted[np.argsort(-check.scores[accepted], kind="stable")]:
        first, second, number = (int(value) for value in candidates[row])
        score, frame_score = float(check.scores[row]), float(check.frames[row])
        best.setdefault((first, second), (first, second, number, round(score, 4), frame_score < score - _CROPPED))
    return list(best.values())


def _listed(left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the pairs to list between the copies of one or of two files."""
    if left is right:
        if len(left) > _MAX_LISTED:
            return [(left[0], index) for index in left[1:]]
        return list(itertools.combinations(left, 2))
    if len(left) * len(right) > _MAX_LISTED:
        return [(left[0], right[0])]
    return list(itertools.product(left, right))


def _kind(first: Fingerprint, second: Fingerprint, number: int, is_crop: bool) -> str:
    if number:
        return "mirrored" if number & 1 else "rotated"
    if is_crop:
        return "cropped"
    return "re-encoded" if first.size == second.size else "resized"
