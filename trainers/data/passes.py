"""Batches that take every case once before any comes again, as an epoch of the papers does.

nnU-Net draws each case of a batch at random, so that a third of them is left out of as many draws as there are cases.
"""

from collections.abc import Sequence

import numpy as np


class CasesInPasses:
    """Names of the cases of each batch; takes the place of ``get_indices`` of nnU-Net's loader.

    Each of nnU-Net's workers makes passes of its own, so with several the cases of one epoch are only nearly all of
    them once.

    Args:
        cases: names, drawn from numpy's global generator.
        batch_size: how many a batch has.
    """

    def __init__(self, cases: Sequence[str], batch_size: int) -> None:
        self.cases = list(cases)
        self.batch_size = batch_size
        self._left: list[str] = []

    def __call__(self) -> np.ndarray:
        """The cases of the next batch."""
        drawn: list[str] = []
        while len(drawn) < self.batch_size:
            if not self._left:
                self._left = np.random.permutation(self.cases).tolist()
            drawn.append(self._left.pop())
        return np.array(drawn)  # as nnU-Net's

    def begin(self, batch: int) -> None:
        """Begin passes anew, at this batch of them; the same one under the same seed."""
        self._left = []
        for _ in range(batch):
            self()
