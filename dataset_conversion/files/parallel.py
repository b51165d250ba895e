"""Runs one function over many cases, in this process or in several."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

from tqdm import tqdm

from braintum.commands.cuda_warnings import hide_cuda_warnings

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CHUNK = 16
POLL_SECONDS = 0.2


def default_processes() -> int:
    """Returns the number of worker processes when the user names none."""
    return min(4, os.cpu_count() or 1)


def run_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    n_processes: int,
    description: str,
    show_progress: bool = True,
) -> list[Result]:
    """Applies `function` to every item, with a progress bar.

    Args:
        function: a module-level function (or `functools.partial` of one), so that workers can find it.
        items: what to apply it to.
        n_processes: 1 stays in this process.
        description: the text of the progress bar.
        show_progress: whether there is a bar.

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
    with tqdm(total=len(items), desc=description, unit="case", disable=not show_progress) as progress:
        if n_processes > 1:
            return _run_in_pool(function, items, n_processes, progress)
        results = []
        for item in items:
            results.append(function(item))
            progress.update()
        return results


def _run_in_pool(
    function: Callable[[Item], Result], items: Sequence[Item], n_processes: int, progress: "tqdm[NoReturn]"
) -> list[Result]:
    length = max(1, min(MAX_CHUNK, len(items) // (4 * n_processes)))
    chunks = [items[start : start + length] for start in range(0, len(items), length)]
    # "spawn": ITK and HDF5 hold threads and locks that do not survive a fork
    executor = ProcessPoolExecutor(
        n_processes, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_worker
    )
    with _deferred_interrupt() as interrupted:
        try:
            futures = [executor.submit(_run_chunk, function, chunk) for chunk in chunks]
            # not concurrent.futures.wait, which looks at all that are pending whenever one is done
            done: queue.SimpleQueue[Future[list[Result]]] = queue.SimpleQueue()
            for future in futures:
                future.add_done_callback(done.put)
            waiting = len(futures)
            while waiting:
                with suppress(queue.Empty):
                    progress.update(len(done.get(timeout=POLL_SECONDS).result()))
                    waiting -= 1
                if interrupted.is_set():
                    raise KeyboardInterrupt
            return [result for future in futures for result in future.result()]
        except BrokenProcessPool as error:
            if interrupted.is_set():
                raise KeyboardInterrupt from error
            raise OSError(
                "a worker process was killed, most likely because the memory ran out; what is done is kept, repeat the "
                "command with fewer processes (-np 1)"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _run_chunk(function: Callable[[Item], Result], chunk: Sequence[Item]) -> list[Result]:
    return [function(item) for item in chunk]


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Notes Ctrl-C in an event within the block, instead of raising KeyboardInterrupt wherever the program is.

    Raised within the pool's own code, it can leave the pool waiting for ever for workers that nobody stops.
    """
    interrupted = threading.Event()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield interrupted  # somebody else handles the signal, or ignores it
        return
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def prepare_worker() -> None:
    """Initialises a worker process: its parent alone handles Ctrl-C, and it ends when its parent does."""
    # Ctrl-C reaches the whole process group: the parent cancels, the workers finish what they have begun
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hide_cuda_warnings()
    # a worker would wait for work for ever after its parent was killed
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
