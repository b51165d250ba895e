"""The mask with the best expected Dice."""

from itertools import product

import numpy as np
import pytest

from braintum.inference.ready.expected_dice import at_best_expected_dice


def mask_of(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(0) == 1


def expected_dice(mask: np.ndarray, probabilities: np.ndarray) -> float:
    return 2 * probabilities[mask].sum() / (mask.sum() + probabilities.sum())


@pytest.mark.parametrize("seed", range(5))
def test_no_other_mask_has_a_better_one(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (2, 1, 2, 4)).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-(logits[1] - logits[0]).astype(float)))
    shifted = at_best_expected_dice(logits)
    assert shifted.dtype == np.float32 and shifted.shape == logits.shape
    every = [np.array(bits, bool).reshape(1, 2, 4) for bits in product((False, True), repeat=8)]
    best = max(expected_dice(mask, probabilities) for mask in every if mask.any())
    assert expected_dice(mask_of(shifted), probabilities) == pytest.approx(best, abs=1e-3)
    assert (mask_of(logits) <= mask_of(shifted)).all()  # never fewer pixels than are more likely tumour than not


def test_doubt_gives_no_empty_mask_and_certainty_changes_nothing() -> None:
    doubt, certain = np.zeros((2, 2, 1, 4, 4), np.float32)
    doubt[1] = -3
    doubt[1, 0, 1:3, 1:3] = -0.5
    assert not mask_of(doubt).any()
    assert mask_of(at_best_expected_dice(doubt))[0, 1:3, 1:3].all()
    certain[1] = -30
    certain[1, 0, 1:3, 1:3] = 30
    np.testing.assert_array_equal(mask_of(at_best_expected_dice(certain)), mask_of(certain))
