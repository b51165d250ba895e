"""Trainings and preprocessings of one data set that begin at the same moment; nnU-Net's own fail in the same test.

benchmarks/robustness/simultaneous_starts.py counts with more of them.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from nnunet_runs import plan, write_dataset

pytestmark = [
    pytest.mark.usefixtures("benchmark_scripts"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are forked"),
]


@pytest.mark.slow
def test_first_trainings_write_the_splits() -> None:
    from simultaneous_starts import count_split_failures

    assert not count_split_failures(30, 1, stock=False)


@pytest.mark.slow
@pytest.mark.thorough  # where pytest has run much before, a forked process waited for ever in compression, once
def test_preprocessing(nnunet_folders: Any) -> None:
    from simultaneous_starts import count_preprocessing_failures

    write_dataset(nnunet_folders.raw, 7)
    assert plan(7) == "BrainTumLightPlans"
    folder: Path = nnunet_folders.preprocessed / "Dataset007_Tiny"
    assert not count_preprocessing_failures(8, 1, False, folder)
    assert not list(folder.glob(".lease-*")) and not list(folder.glob(".partial-*"))
