"""Checkpoints written while training goes on: the state is copied at once, the file follows from a thread of its own.

The files are those that nnU-Net writes, under a temporary name until they are complete and on the disk.
"""

import copy
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module

from braintum.commands.seams import replaced
from braintum.trainers.safety.crash_safety import complete_or_absent

_MOST_WRITES = 2  # that are under way or wait: each holds a copy of weights and optimiser
_LOGGER = logging.getLogger(__name__)


def checkpoint_of(save_checkpoint: Callable[[str], None]) -> dict[str, Any] | None:
    """What nnU-Net's ``save_checkpoint`` would write; None where it writes nothing.

    It makes the content and writes it in one method; only its own ``torch.save`` is another here, no other thread's.
    The content holds the live weights: see :func:`on_cpu`.
    """
    caught: list[dict[str, Any]] = []
    catching = SimpleNamespace(**{**vars(torch), "save": lambda content, file: caught.append(content)})
    with replaced(stock_module, torch=catching):
        save_checkpoint("caught before it is written")
    return caught[0] if caught else None


def on_cpu(value: Any) -> Any:
    """A copy that later training does not change, tensors on the CPU; tensors that share memory still share it.

    Args:
        value: dicts, lists and tuples of tensors and of what :func:`copy.deepcopy` copies.
    """
    return _copied(value, {})


def _copied(value: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if (key := storage._cdata) not in storages:
            storages[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        empty = torch.empty(0, dtype=value.dtype)
        return empty.set_(storages[key], value.storage_offset(), value.size(), value.stride())
    if isinstance(value, dict):
        same = copy.copy(value)  # an OrderedDict, with its attributes
        for key in same:
            same[key] = _copied(same[key], storages)
        return same
    if type(value) in (list, tuple):
        return type(value)(_copied(item, storages) for item in value)
    return copy.deepcopy(value)


def write_checkpoint(checkpoint: dict[str, Any], file: str) -> None:
    """Write a checkpoint, completely or not at all, and wait until it is on the disk.

    Raises:
        UnwritableFolderError: the disk is full, or the folder read-only.
    """
    weights = sum(tensor.nbytes for tensor in checkpoint.get("network_weights", {}).values())
    with complete_or_absent(file, 3 * weights) as partial:  # the optimiser has up to twice as much
        torch.save(checkpoint, partial)


class CheckpointWriter:
    """Writes one checkpoint after another in a thread. Leaving its context waits for all of them.

    Raises:
        OSError: when the context is left without another error, if a file could not be written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writes: deque[tuple[str, Future]] = deque()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            _LOGGER.error("a checkpoint could not be written either: %s", failure)

    def submit(self, checkpoint: dict[str, Any], file: str) -> None:
        """Copy a checkpoint and have it written.

        A write of the same file that has not begun is dropped; where two are under way, the first is waited for.

        Args:
            checkpoint: of :func:`checkpoint_of`.
            file: to write.

        Raises:
            Exception: what an earlier write raised.
        """
        self.raise_errors()
        self._writes = deque((other, write) for other, write in self._writes if other != file or not write.cancel())
        while len(self._writes) >= _MOST_WRITES:
            self._finish_oldest()
        self._writes.append((file, self._thread.submit(write_checkpoint, on_cpu(checkpoint), file)))

    def raise_errors(self) -> None:
        """Raise what a finished write raised, once."""
        while self._writes and self._writes[0][1].done():
            self._finish_oldest()

    def wait(self) -> None:
        """Wait for all writes; the first error is raised when they are done.

        Raises:
            Exception: what a write raised.
        """
        failures = [write.exception() for _, write in self._writes]
        self._writes.clear()
        for failure in failures:
            if failure is not None:
                raise failure

    def _finish_oldest(self) -> None:
        _, write = self._writes.popleft()
        write.result()
