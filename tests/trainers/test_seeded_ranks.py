"""Seeds of a distributed training, and the mode in which torch computes deterministically."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from braintum.trainers.data.seeded_batches import (
    NETWORK,
    TRAINING,
    VALIDATION,
    compute_deterministically,
    seeded_batches,
    stream_of_rank,
)
from braintum.trainers.recipes.settings import TrainingSettings


class Loader:
    """Draws as nnU-Net's loader does, from numpy's and torch's global generators."""

    transforms = None

    def generate_train_batch(self) -> dict[str, Any]:
        return {"data": np.random.rand(3), "target": torch.rand(3).numpy()}


def drawn(rank: int, first_epoch: int = 0) -> list[list[float]]:
    batches = seeded_batches(Loader(), 7, stream_of_rank(TRAINING, rank), first_epoch, 2, 0, pin_memory=False)
    return [[*batch["data"].tolist(), *batch["target"].tolist()] for batch in islice(batches, 4)]


def test_every_rank_draws_its_own_batches_reproducibly() -> None:
    ranks = [drawn(rank) for rank in range(3)]
    assert len({tuple(batch) for batches in ranks for batch in batches}) == 3 * 4
    assert drawn(1) == ranks[1]
    assert drawn(1, first_epoch=1)[:2] == ranks[1][2:]  # a resumed training goes on with the same batches


def test_streams_of_ranks_never_meet() -> None:
    streams = [stream_of_rank(stream, rank) for rank in range(4) for stream in (TRAINING, VALIDATION, NETWORK)]
    assert len(set(streams)) == len(streams) and streams[:3] == [TRAINING, VALIDATION, NETWORK]


def test_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("braintum_seed", raising=False)
    monkeypatch.setenv("braintum_deterministic", "1")
    with pytest.raises(ValueError, match="braintum_deterministic=1 needs a seed"):
        TrainingSettings.from_environment()
    monkeypatch.setenv("braintum_seed", "3")
    assert TrainingSettings.from_environment().deterministic
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
