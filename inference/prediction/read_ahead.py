"""Reading and preprocessing of cases before the network asks for them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from braintum.conversion.files.disk import UnwritableFolderError
from braintum.inference.prediction.case_streams import PreprocessedCase

Preprocess = Callable[[Sequence[str]], list[tuple[np.ndarray, dict]]]
"""Files of a case to its images and their properties, one for each model."""


class ReadAhead:
    """Iterates over preprocessed cases; those that fail are left out and noted.

    Args:
        workers: that preprocess.
        preprocess: what they do with the files of a case.
        cases: files by case, in order.
        queue_length: cases at most that wait, preprocessed or in work.

    Attributes:
        faults: cases that could not be preprocessed so far, with what is wrong.
        properties: of the cases handed out, as nnU-Net's export needs them; to be removed when used.
    """

    def __init__(
        self, workers: Executor, preprocess: Preprocess, cases: Mapping[str, Sequence[str]], queue_length: int
    ) -> None:
        self._workers = workers
        self._preprocess = preprocess
        self._upcoming = iter(cases.items())
        self._waiting: deque[tuple[str, Future]] = deque()
        self.faults: deque[tuple[str, str]] = deque()
        self.properties: dict[str, dict] = {}
        for _ in range(queue_length):
            self._submit()

    def _submit(self) -> None:
        if (item := next(self._upcoming, None)) is not None:
            case, files = item
            self._waiting.append((case, self._workers.submit(self._preprocess, files)))

    def __iter__(self) -> Iterator[PreprocessedCase]:
        """Raises BrokenProcessPool where a worker process is gone."""
        while self._waiting:
            case, job = self._waiting.popleft()
            self._submit()
            if (fault := fault_of(job)) is not None:
                self.faults.append((case, fault))
                continue
            arrays = job.result()
            self.properties[case] = arrays[0][1]
            yield case, [data for data, _ in arrays]

    def cancel(self) -> None:
        """Take back what no worker has begun."""
        for _, job in self._waiting:
            job.cancel()


def fault_of(future: Future) -> str | None:
    """What went wrong in a worker, in words; None if nothing did.

    Raises:
        BrokenProcessPool: the worker process itself is gone.
        UnwritableFolderError: the next case would fare no better.
    """
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, (BrokenProcessPool, UnwritableFolderError)):
        raise error
    return str(error) or type(error).__name__
