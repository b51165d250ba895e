"""Batches that depend on (seed, epoch, index) alone.

nnU-Net's augmenters run ahead in processes with random states of their own and deliver in the order of arrival, so two
runs never see the same batches and a resumed run cannot go on where it stopped. Here every batch seeds the random
generators itself, and torch's loader delivers in order, whatever the number of workers.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from braintum.trainers.data.passes import CasesInPasses

TRAINING, VALIDATION, NETWORK = range(3)
"""Streams of random numbers in a training."""


def stream_of_rank(stream: int, rank: int) -> int:
    """A stream for one process of a distributed training; rank 0 draws what a training in one process draws.

    Ranks that share a stream would train on the same patches, or with the same dropout.
    """
    return stream + 3 * rank


def compute_deterministically() -> None:
    """Make torch choose the same algorithms in every run; on CUDA it otherwise takes the fastest of several.

    For the whole process, once a training starts: nnU-Net asks cuDNN for the opposite just before.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def seed_everything(*entropy: int) -> None:
    """Seed Python, numpy and torch from several integers at once."""
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(python_seed))
    np.random.seed(int(numpy_seed))
    torch.manual_seed(int(torch_seed))


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Python's, numpy's and torch's random generators (on the CPU) go on afterwards as if nothing had been drawn."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class _SeededBatches(Dataset):
    """Batch of (epoch, index); ``loader`` is one of nnU-Net's."""

    def __init__(self, loader: Any, seed: int, stream: int) -> None:
        self.loader = loader
        self.seed = seed
        self.stream = stream

    def __getitem__(self, position: tuple[int, int]) -> dict:
        # without workers the network draws from the same generators, and its dropout must be that with workers
        with nullcontext() if get_worker_info() else unchanged_generators():
            if isinstance(getattr(self.loader, "get_indices", None), CasesInPasses):
                epoch, index = position
                seed_everything(self.seed, self.stream, epoch)
                self.loader.get_indices.begin(index)
            seed_everything(self.seed, self.stream, *position)
            return self.loader.generate_train_batch()


class _Positions(Sampler):
    """(epoch, index) of every batch from ``first_epoch`` on, without end."""

    def __init__(self, first_epoch: int, batches_per_epoch: int) -> None:
        self.first_epoch = first_epoch
        self.batches_per_epoch = batches_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch in count(self.first_epoch):
            for index in range(self.batches_per_epoch):
                yield epoch, index


def seeded_batches(
    loader: Any,
    seed: int,
    stream: int,
    first_epoch: int,
    batches_per_epoch: int,
    num_processes: int,
    pin_memory: bool,
) -> Iterator[dict]:
    """Endless batches, in order.

    Args:
        loader: nnU-Net's ``nnUNetDataLoader``, with its transforms.
        seed: of the run.
        stream: tells training from validation, and one rank from another.
        first_epoch: where to begin.
        batches_per_epoch: batches that an epoch takes.
        num_processes: workers; 0 for none.
        pin_memory: for CUDA.
    """
    for transform in _all_transforms(loader.transforms):
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False  # it chooses between two implementations by a stopwatch
    return iter(
        DataLoader(
            _SeededBatches(loader, seed, stream),
            batch_size=None,
            sampler=_Positions(first_epoch, batches_per_epoch),
            num_workers=num_processes,
            pin_memory=pin_memory,
        )
    )


def seeded_iterators(
    training: Any,
    validation: Any,
    seed: int,
    rank: int,
    first_epoch: int,
    batches_per_epoch: tuple[int, int],
    device: torch.device,
) -> tuple[Iterator[dict], Iterator[dict]]:
    """Endless batches for training and validation, with as many workers as nnU-Net would have.

    Args:
        training: nnU-Net's loader, see :func:`seeded_batches`.
        validation: nnU-Net's loader.
        seed: of the run.
        rank: of this process in a distributed training.
        first_epoch: where to begin.
        batches_per_epoch: for training and validation.
        device: that the batches are for.
    """
    workers, pin_memory = get_allowed_n_proc_DA(), device.type == "cuda"
    streams = stream_of_rank(TRAINING, rank), stream_of_rank(VALIDATION, rank)
    return (
        seeded_batches(training, seed, streams[0], first_epoch, batches_per_epoch[0], workers, pin_memory),
        seeded_batches(validation, seed, streams[1], first_epoch, batches_per_epoch[1], workers // 2, pin_memory),
    )


def _all_transforms(transform: Any) -> Iterator[Any]:
    """``transform`` and what it wraps: compositions keep ``transforms``, random application keeps ``transform``."""
    yield transform
    for child in getattr(transform, "transforms", None) or [getattr(transform, "transform", None)]:
        if child is not None:
            yield from _all_transforms(child)
