"""Which of many examples ``make test`` runs, and which are left to ``make test-all``."""

import pytest

from braintum.trainers import registered

SOME_TRAINERS = ("nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet", "nnUNetTrainerUNet")
"""With nnU-Net's network, with one of our own, without classes."""

ALL_TRAINERS = [
    name if name in SOME_TRAINERS else pytest.param(name, marks=pytest.mark.thorough) for name in registered.__all__
]
"""Parameters of a test; those beside :data:`SOME_TRAINERS` are thorough."""
