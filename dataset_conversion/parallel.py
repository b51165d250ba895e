"""Runs one function over many cases, in this process or in several."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CHUNK = 16


def default_processes() -> int:
    """Returns the number of worker processes when the user names none."""
    return min(4, os.cpu_count() or 1)


def run_cases(
    function: Callable[[Item], Result], items: Sequence[Item], n_processes: int, description: str
) -> list[Result]:
    """Applies `function` to every item, with a progress bar.

    Args:
        function: a module-level function (or `functools.partial` of one), so that workers can find it.
        items: what to apply it to.
        n_processes: 1 stays in this process.
        description: the text of the progress bar.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: `n_processes` is below 1.
        OSError: a worker was killed, most likely for its memory.
        Exception: the first error that `function` raises. What has not been started is cancelled then, what has
            been is finished, so that files written atomically are complete or absent. The same on Ctrl-C.
    """
    if n_processes < 1:
        raise ValueError(f"the number of processes has to be at least 1, not {n_processes}")
    # a worker takes about a second to start: not worth it for a handful of cases
    n_processes = min(n_processes, (len(items) + 3) // 4)
    if n_processes <= 1:
        return list(_with_progress(map(function, items), len(items), description))
    # "spawn": ITK and HDF5 hold threads and locks that do not survive a fork
    executor = ProcessPoolExecutor(
        n_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupt
    )
    chunk = max(1, min(MAX_CHUNK, len(items) // (4 * n_processes)))
    try:
        return list(_with_progress(executor.map(function, items, chunksize=chunk), len(items), description))
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, most likely because the memory ran out; repeat with fewer processes (-np 1)"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _with_progress(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    return tqdm(results, total=total, desc=description, unit="case")


def _ignore_interrupt() -> None:
    # Ctrl-C reaches the whole process group: the parent cancels, the workers finish what they have begun
    signal.signal(signal.SIGINT, signal.SIG_IGN)
