"""Detection of single lesions: connected components of the true mask against those of the predicted one."""

import numpy as np
from scipy import ndimage


def lesion_metrics(reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Counts lesions that are found, missed and invented.

    A lesion is a connected component under full connectivity (8 neighbours in 2-D, 26 in 3-D). A true lesion is found
    if any predicted voxel lies in it; a predicted lesion is false if no true voxel lies in it. So one predicted lesion
    may find several true ones, and several may share one: recall goes over the true lesions, precision over the
    predicted ones, and F1 is the harmonic mean of these two.

    Args:
        reference: true mask, bool, (Y, X) or (Z, Y, X).
        prediction: predicted mask, of the same shape.

    Returns:
        ``n_lesions_ref``, ``n_lesions_found`` (of these), ``n_lesions_pred``, ``n_lesions_false`` (of these),
        ``lesion_recall`` (NaN without true lesions), ``lesion_precision`` (NaN without predicted ones) and
        ``lesion_F1`` (NaN without either, 0 where nothing is found).
    """
    n_ref, n_found = _components(reference, prediction)
    n_pred, n_matched = _components(prediction, reference)
    recall = n_found / n_ref if n_ref else np.nan
    precision = n_matched / n_pred if n_pred else np.nan
    f1 = 0.0 if n_ref + n_pred else np.nan
    if n_found:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "n_lesions_ref": n_ref,
        "n_lesions_found": n_found,
        "n_lesions_pred": n_pred,
        "n_lesions_false": n_pred - n_matched,
        "lesion_recall": recall,
        "lesion_precision": precision,
        "lesion_F1": f1,
    }


def _components(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Number of connected components of a mask, and how many of them the other mask touches."""
    components, number = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return number, len(np.unique(components[mask & other]))
