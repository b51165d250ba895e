"""Detection of single lesions: true lesions against the predicted components that touch them.

Lesions are told apart and matched as BraTS 2023 does for its lesion-wise figures (Saluja et al.,
https://github.com/rachitsaluja/BraTS-2023-Metrics, "dilation 3x3x3 mm"): the true mask is dilated, so that its small
parts close to each other are one lesion, and each predicted component belongs to the lesions whose dilated masks it
touches. BraTS leaves lesions below a challenge's smallest volume out; here every one counts. BraTS gives a Dice a
lesion and counts no hits: a lesion is found here from an IoU of 0.1 on, the usual threshold of detection in medical
images (nnDetection, Baumgartner et al. 2021, https://arxiv.org/abs/2106.00817), so that one blob over everything finds
nothing.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

DILATION = 3.0
"""How far true lesions are dilated, in mm (or pixels, where the files know no spacing): BraTS' value for gliomas."""
MIN_IOU = 0.1
"""From which overlap with its predicted components on a true lesion is found."""


def lesion_metrics(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Counts lesions that are found, missed and invented.

    A predicted lesion is a connected component under full connectivity (8 neighbours in 2-D, 26 in 3-D); a true one,
    of the true mask dilated by :data:`DILATION`. A true lesion is found if its IoU with all predicted lesions that
    touch its dilated mask, taken together, is at least :data:`MIN_IOU`; a predicted lesion is false if it touches no
    lesion that is found. Recall goes over the true lesions, precision over the predicted ones, and F1 is the harmonic
    mean of these two.

    Args:
        reference: true mask, bool, (Y, X) or (Z, Y, X).
        prediction: predicted mask, of the same shape.
        spacing: of each axis, in mm or pixels.

    Returns:
        ``n_lesions_ref``, ``n_lesions_found`` (of these), ``n_lesions_pred``, ``n_lesions_false`` (of these),
        ``lesion_recall`` (NaN without true lesions), ``lesion_precision`` (NaN without predicted ones), ``lesion_F1``
        (NaN without either, 0 where nothing is found) and ``lesion_Dice``, BraTS' lesion-wise Dice: the mean over the
        true lesions and the predicted ones that touch none, which count 0 (NaN without either).
    """
    everywhere = np.ones((3,) * reference.ndim)
    extents, n_ref = ndimage.label(_dilated(reference, spacing), structure=everywhere)
    components, n_pred = ndimage.label(prediction, structure=everywhere)
    touching = prediction & (extents > 0)
    lesion, component = np.unique([extents[touching], components[touching]], axis=1)
    sizes = np.bincount(components.ravel(), minlength=n_pred + 1)
    true, overlap = (
        np.bincount(extents[mask], minlength=n_ref + 1)[1:] for mask in (reference, reference & prediction)
    )
    predicted = np.bincount(lesion, sizes[component], minlength=n_ref + 1)[1:]
    found = overlap >= MIN_IOU * (true + predicted - overlap)
    n_found, n_true_positive = int(found.sum()), len(np.unique(component[found[lesion - 1]]))
    n_scored = n_ref + n_pred - len(np.unique(component))
    recall = n_found / n_ref if n_ref else np.nan
    precision = n_true_positive / n_pred if n_pred else np.nan
    f1 = 0.0 if n_ref + n_pred else np.nan
    if n_found:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "n_lesions_ref": n_ref,
        "n_lesions_found": n_found,
        "n_lesions_pred": n_pred,
        "n_lesions_false": n_pred - n_true_positive,
        "lesion_recall": recall,
        "lesion_precision": precision,
        "lesion_F1": f1,
        "lesion_Dice": float((2 * overlap / (true + predicted)).sum()) / n_scored if n_scored else np.nan,
    }


def _dilated(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask dilated by :data:`DILATION`: with voxels of 1 mm, what BraTS' three iterations over 18 neighbours give."""
    steps = [int(DILATION / edge + 1e-6) for edge in spacing]
    for step in range(max(steps) if mask.any() else 0):
        structure = ndimage.generate_binary_structure(mask.ndim, 2)
        for axis, number in enumerate(steps):
            if step >= number:
                np.moveaxis(structure, axis, 0)[[0, 2]] = False
        mask = ndimage.binary_dilation(mask, structure)
    return mask
