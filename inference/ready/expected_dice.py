"""The mask with the best expected Dice, instead of all pixels that are more likely tumour than not.

Where a network doubts, no pixel passes one half, and the mask is empty although a tumour was seen. The expected Dice of
a mask is known from the probabilities themselves, and the best mask consists of all pixels above some threshold, half
of that best value for independent pixels (Lipton, Elkan and Naryanaswamy 2014), so never above one half.
"""

import numpy as np
from scipy.special import expit, logit


def at_best_expected_dice(logits: np.ndarray) -> np.ndarray:
    """Logits whose most probable labels are the mask with the best expected Dice.

    Args:
        logits: (2, Z, Y, X) of background and tumour; of a volume, all slices are one mask.

    Returns:
        The same shape, float32.
    """
    probabilities = np.sort(expit((logits[1] - logits[0]).astype(np.float64)), axis=None)[::-1]
    sums = np.cumsum(probabilities)
    expected = 2 * sums / (np.arange(1, len(sums) + 1) + sums[-1])
    threshold = probabilities[expected.argmax()]
    shifted = logits.astype(np.float32)
    shifted[1] -= logit(np.clip(threshold, 1e-12, 0.5)) - 1e-4  # a little below, so that the last pixel is in the mask
    return shifted
