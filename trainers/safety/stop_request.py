"""Trainings that are asked to stop, see :mod:`braintum.commands.stopping`."""

import os
from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from torch import distributed as dist

from braintum.commands.stopping import STOP_VARIABLE


class StopRequestedError(Exception):
    """Leaves nnU-Net's loop over the epochs; the training is to go on later."""


def stop_requested(is_ddp: bool) -> bool:
    """Whether the file is there; of several ranks, the first one looks for all."""
    file = os.environ.get(STOP_VARIABLE)
    answer = [bool(file) and os.path.exists(str(file))]
    if is_ddp:
        dist.broadcast_object_list(answer)
    return answer[0]


def end_workers(batches: Any) -> None:
    """End the processes behind an iterator over batches, as nnU-Net does when a training is complete."""
    if isinstance(batches, (MultiThreadedAugmenter, NonDetMultiThreadedAugmenter)):
        batches._finish()
