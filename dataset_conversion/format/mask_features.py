"""What voxel probabilities tell of how good the mask is that was made of them.

``braintum_calibrate`` computes these of the held-out cases, whose true masks are known, ``braintum_predict`` of new
ones: the same few lines, on the grid of the image file in both cases.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, label
from scipy.special import entr

from braintum.conversion.format.calibration import at_temperature
from braintum.conversion.format.trust import SIZE

BAND = 3
"""Voxels on either side of the border of the predicted mask, in which calibration is looked at apart."""
_TINY = 1e-6  # voxels: keeps quotients of empty masks defined


def tumour_probability(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """Probability of any tumour, (Z, Y, X), float32.

    Args:
        probabilities: (labels, Z, Y, X) with the background first, or (regions, Z, Y, X).
        has_regions: the latter; each region is a question of its own, and the largest answer counts.
    """
    return (probabilities.max(0) if has_regions else 1 - probabilities[0]).astype(np.float32)


def border_band(mask: np.ndarray) -> np.ndarray:
    """Voxels within :data:`BAND` of the border of a mask (Z, Y, X), bool; of a single slice, within the slice."""
    band = np.zeros(mask.shape, dtype=bool)
    if not mask.any():
        return band
    box = _box(mask, BAND)
    structure = np.ones((1 if len(mask) == 1 else 3, 3, 3), dtype=bool)
    band[box] = binary_dilation(mask[box], structure, BAND) & ~binary_erosion(mask[box], structure, BAND)
    return band


def calibrated_voxels(
    probabilities: np.ndarray, mask: np.ndarray, temperature: float, border_temperature: float, has_regions: bool
) -> np.ndarray:
    """Voxel probabilities as if logits were divided by one temperature at the mask's border, by another elsewhere.

    A network is much too sure of where a border runs, and hardly too sure of the rest: one temperature cannot mend both
    (local scaling: Ding et al. 2021, https://arxiv.org/abs/2008.05105). The most probable label stays.

    Args:
        probabilities: (labels or regions, Z, Y, X).
        mask: (Z, Y, X) bool, predicted.
        temperature: away from the border.
        border_temperature: of :func:`border_band`.
        has_regions: whether these are probabilities of regions.

    Returns:
        Shaped as given, float32.
    """
    rows = np.moveaxis(probabilities, 0, -1)  # (Z, Y, X, labels)
    if has_regions:
        rows = np.stack([1 - rows, rows], -1)  # (Z, Y, X, regions, 2)
    band = border_band(mask)
    scaled = np.empty(rows.shape, np.float32)
    for where, divisor in ((~band, temperature), (band, border_temperature)):
        scaled[where] = at_temperature(rows[where], divisor)
    return np.moveaxis(scaled[..., 1] if has_regions else scaled, -1, 0)


def mask_features(tumour: np.ndarray, mask: np.ndarray, voxel_size: float, agreement: float | None) -> dict[str, float]:
    """Numbers that rise or fall with the Dice of a mask, and its expected size.

    Size and class tell of the Dice, too, but not in the same way in every fold: they made the regressor worse where it
    had not seen the network before, and so are not among them.

    Args:
        tumour: (Z, Y, X), see :func:`tumour_probability`.
        mask: (Z, Y, X) bool, the predicted tumour.
        voxel_size: in mm³, mm² or pixels.
        agreement: of mirrored passes about the mask (``mask_agreement`` of a case's result); None where not known.

    Returns:
        ``soft_dice``: Dice that the probabilities themselves expect of the mask, were voxels independent (Lipton et al.
        2014). ``thresholds``: Dice between the masks at 0.3 and at 0.7. ``entropy``: of all voxels in bits, divided by
        the expected size, which thin borders keep small. ``log_size``: decimal logarithm of the expected size.
        ``peak``: highest probability. ``largest_part``: share of the mask in its largest part; 0 for none.
        ``agreement``: as given; NaN where not known.
    """
    inside, expected = float(tumour[mask].sum()), float(tumour.sum())
    seen = tumour[tumour > 1e-3].astype(np.float64)
    low, high = np.count_nonzero(seen > 0.3), np.count_nonzero(seen > 0.7)
    uncertain = seen[seen < 1 - 1e-3]
    entropy = float((entr(uncertain) + entr(1 - uncertain)).sum()) / np.log(2)
    return {
        "soft_dice": 2 * inside / (np.count_nonzero(mask) + expected + _TINY),
        "thresholds": 2 * high / (low + high) if low else 0.0,
        "entropy": min(entropy / (expected + 1), 10.0),
        SIZE: float(np.log10((expected + 1) * voxel_size)),
        "peak": float(tumour.max()),
        "largest_part": _share_of_largest_part(mask),
        "agreement": float("nan") if agreement is None else float(agreement),
    }


def voxel_size(spacing: Sequence[float], is_single_slice: bool, is_picture: bool) -> float:
    """mm³ of volumes, mm² of single slices, 1 of pictures.

    Args:
        spacing: Z, Y, X, as nnU-Net's readers give it; the first one of a single slice is a placeholder.
        is_single_slice: one slice only.
        is_picture: without a spacing in mm.
    """
    if is_picture:
        return 1.0
    return float(np.prod(spacing[1:] if is_single_slice else spacing))


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Around the voxels of a mask that is not empty."""
    axes = range(mask.ndim)
    along = (np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(slice(max(0, at[0] - margin), at[-1] + margin + 1) for at in along)


def _share_of_largest_part(mask: np.ndarray) -> float:
    if not mask.any():
        return 0.0
    parts, _ = label(mask[_box(mask, 0)])
    counts = np.bincount(parts.ravel())[1:]
    return float(counts.max() / counts.sum())
