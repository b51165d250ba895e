"""Which of many examples ``make test`` runs, and which are left to ``make test-all``."""

import pytest

from braintum.trainers import registered
from braintum.trainers.baselines import BASELINES

SOME_TRAINERS = ("nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet", "nnUNetTrainerUNet")
"""With nnU-Net's network, with one of our own, without classes."""

_BASELINE_TRAINERS = [f"nnUNetTrainer{name}{suffix}" for name in BASELINES for suffix in ("", "MultiTask")]

OWN_TRAINERS = [name for name in registered.__all__ if name not in _BASELINE_TRAINERS]
"""Without the networks of others, which are large at full size, and have tests of their own."""

ALL_TRAINERS = [
    name if name in SOME_TRAINERS else pytest.param(name, marks=pytest.mark.thorough) for name in OWN_TRAINERS
]
"""Parameters of a test; those beside :data:`SOME_TRAINERS` are thorough."""
