"""How many forward passes fit into memory, and how many of them at once are fastest."""

import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_SHARE_OF_FREE_MEMORY = 0.5  # on the host, which other programs use too
_SHARE_OF_FREE_DEVICE_MEMORY = 0.8
_ASSUMED_HOST_MEMORY = 2**31  # bytes, where the system does not say
_ASSUMED_FEATURES = 400  # feature maps at full resolution, for networks without nnU-Net's estimate
_LARGEST_BATCH = 256
_WORTHWHILE_GAIN = 0.97  # of the time a pass: below it another size is the faster one
_ROUNDS = 3  # batches of each size that are timed
_SHARE_FOR_MEASURING = 6  # runs with fewer than this many times the passes of all rounds are not measured
_LOGGER = logging.getLogger(__name__)
_CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_host_memory() -> int:
    """Bytes that a new program can use, within the limits of a container or batch job."""
    available = [_read_available(Path("/proc/meminfo"))]
    for limit_file, usage_file in _CGROUP_FILES:
        limit, usage = _read_bytes(limit_file), _read_bytes(usage_file)
        if limit is not None and usage is not None:
            available.append(max(0, limit - usage))
    known = [size for size in available if size is not None]
    return min(known) if known else _ASSUMED_HOST_MEMORY


def _read_available(meminfo: Path) -> int | None:
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read_bytes(file: Path) -> int | None:
    if not file.is_file():
        return None
    text = file.read_text(encoding="ascii").strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def host_bytes_per_pass(network: Any, patch_size: Sequence[int]) -> int:
    """Upper bound of what one forward pass of a patch takes: all feature maps that training would keep, in float32.

    Args:
        network: nnU-Net's or ours; with ``compute_conv_feature_map_size`` it says so itself.
        patch_size: in voxels.
    """
    try:
        elements = float(network.compute_conv_feature_map_size(tuple(patch_size)))
    except (AttributeError, NotImplementedError):
        elements = _ASSUMED_FEATURES * math.prod(patch_size)
    return max(1, int(4 * elements))


def largest_host_batch(bytes_per_pass: int, lanes: int = 1) -> int:
    """Passes that one of several lanes may run at once; 1 at least."""
    budget = _SHARE_OF_FREE_MEMORY * available_host_memory() / lanes
    return int(min(_LARGEST_BATCH, max(1, budget // bytes_per_pass)))


def largest_device_batch(run: Callable[[int], Any], device: torch.device, most: int) -> int:
    """Passes that fit into the free memory of a CUDA device, from the peaks of a batch of one and of two.

    Args:
        run: runs a batch of the given size.
        device: of type cuda.
        most: passes that there are; no more are asked for.
    """
    peaks = []
    for size in (1, 2):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            run(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return 1
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    a_pass = max(1, peaks[1] - peaks[0], peaks[1] // 4)
    return int(min(_LARGEST_BATCH, most, max(1, _SHARE_OF_FREE_DEVICE_MEMORY * free // a_pass)))


class BatchSize:
    """Passes a batch: the first batches of a run try several sizes, the others have the one that took least time.

    Nothing is computed only to be measured. Safe to use from several threads.

    Args:
        start: size until something is measured, and where nothing is.
        largest: that fits into memory, as far as is known.
        passes: of the whole run; where they are few, sizes are not compared.
    """

    def __init__(self, start: int, largest: int, passes: int) -> None:
        self._lock = threading.Lock()
        self._current = max(1, min(start, largest))
        sizes = sorted({max(1, start // 2), start, 2 * start, 4 * start})
        self._seconds: dict[int, list[float]] = {size: [] for size in sizes if size <= largest}
        self._to_try = list(self._seconds) * _ROUNDS
        if len(self._seconds) < 2 or passes < _SHARE_FOR_MEASURING * sum(self._to_try):
            self._to_try = []
            self._seconds = {}

    @property
    def measuring(self) -> bool:
        """Whether sizes are still compared."""
        return bool(self._seconds)

    def next(self) -> int:
        """Size of the next batch."""
        with self._lock:
            return self._to_try.pop(0) if self._to_try else self._current

    def report(self, size: int, seconds: float) -> None:
        """Note how long a batch took; decides when all sizes were tried."""
        with self._lock:
            if size in self._seconds:
                self._seconds[size].append(seconds / size)
            if self._seconds and all(len(times) >= _ROUNDS for times in self._seconds.values()):
                best = self._current
                for candidate, times in self._seconds.items():
                    if min(times) < _WORTHWHILE_GAIN * min(self._seconds[best]):
                        best = candidate
                self._current = best
                self._seconds = {}
                _LOGGER.info("batches of %d passes are the fastest", best)

    def back_off(self, failed: int) -> int:
        """A batch of ``failed`` ran out of memory: returns the size to go on with, half of it at most."""
        with self._lock:
            self._current = max(1, min(self._current, failed // 2))
            self._to_try = []
            self._seconds = {}
            return self._current


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on the device or the host."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    message = str(error).lower()
    reasons = ("out of memory", "can't allocate memory", "cudnn_status_alloc_failed", "not enough memory")
    return isinstance(error, RuntimeError) and any(reason in message for reason in reasons)


def available_cores() -> int:
    """Cores that this process may use; fewer than the machine's in many containers and batch jobs."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
