"""Prediction of many cases at once: windows, mirrors, slices and cases share batches of the network.

The result is nnU-Net's to rounding: its windows, weights, mirrors and folds, summed in another order and in float32.
Several threads ("lanes") run the network where that is faster than one, while the caller reads and writes.
"""

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from braintum.inference.models.network_copies import shared_copy
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.class_evidence import ClassRecorder, FoldEvidence
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import (
    BatchSize,
    host_bytes_per_pass,
    is_out_of_memory,
    largest_device_batch,
    largest_host_batch,
)
from braintum.inference.prediction.precision import Precision, PrecisionTrial, cpu_computes_bfloat16
from braintum.inference.prediction.window_batches import (
    CaseInProgress,
    Pass,
    batch,
    runs_of_windows,
    summed_over_mirrors,
)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BulkSettings:
    """Constants of the bulk mode."""

    most_lanes: int = 8
    voxels_of_a_host_batch: int = (
        2**16
    )  # until it is measured what is fastest, and where there is too little to measure
    passes_of_a_device_batch: int = 16  # likewise
    voxels_worth_a_trial: int = 2**22  # network input of a run, below which bfloat16 is not tried
    trial_share: float = 0.05  # of the windows of a run, compared in both precisions
    usual_trial_windows: int = 12  # at least, but no more than a sixth of those that there are
    most_trial_windows: int = 24


SETTINGS = BulkSettings()


@dataclass(frozen=True)
class PredictedCase:
    """A case's logits (heads, Z, Y, X), float32, averaged over folds, and its class evidence, one entry a fold."""

    name: str
    logits: np.ndarray
    evidence: list[FoldEvidence]


@dataclass(frozen=True)
class _Lane:
    """What one thread runs: a network a fold."""

    networks: list[Any]


class BulkPredictor:
    """Predicts a stream of preprocessed cases.

    Args:
        predictor: initialised; a :class:`JointPredictor` gives class evidence too.
        num_cases: expected, to judge what measuring is worth.
        num_threads: of the CPU, for all lanes together.
        precision: ``auto`` is float32 on CPUs unless bfloat16 proves to agree with it
            (:mod:`braintum.inference.prediction.precision`); on CUDA always nnU-Net's autocast.

    Raises:
        ValueError: bfloat16 is asked for and the device is not the CPU.
    """

    def __init__(
        self,
        predictor: SegmentationPredictor,
        num_cases: int,
        num_threads: int,
        precision: Precision = "auto",
    ) -> None:
        self._predictor = predictor
        self._device: torch.device = predictor.device
        if precision == "bfloat16" and self._device.type != "cpu":
            raise ValueError(f"bfloat16 is a choice for CPUs; leave the precision on {self._device.type} to nnU-Net")
        self._num_cases = num_cases
        self._num_threads = max(1, num_threads)
        self._precision = precision
        self._bfloat16 = precision == "bfloat16"
        self._trial: PrecisionTrial | None = None
        self._trial_lock = threading.Lock()
        self._batch_size = BatchSize(1, 1, 0)
        self._free_lanes: deque[_Lane] = deque()
        self._num_lanes = 1

    def predict(self, cases: Iterable[tuple[str, np.ndarray]]) -> Iterator[PredictedCase]:
        """Predict cases as they arrive; the order stays.

        Args:
            cases: name and preprocessed image (C, Z, Y, X). A case is taken when the batches before it are filled.

        Raises:
            RuntimeError: a single pass does not fit into memory, or the network fails.
        """
        unfinished: deque[CaseInProgress] = deque()
        images = iter(cases)
        first = self._next_case(images)
        if first is None:
            return
        self._prepare(first)
        passes = self._passes(itertools.chain([first], iter(lambda: self._next_case(images), None)), unfinished)
        running: set[Future] = set()
        with ThreadPoolExecutor(self._num_lanes, initializer=self._start_lane) as lanes:
            exhausted = False
            while True:
                # one job more than lanes, so that none waits for this thread
                while not exhausted and len(running) <= self._num_lanes:
                    job = list(itertools.islice(passes, self._passes_of_a_job(first)))
                    if job:
                        running.add(lanes.submit(self._run, job))
                    else:
                        exhausted = True
                while unfinished and unfinished[0].complete:
                    case = unfinished.popleft()
                    yield PredictedCase(case.name, case.logits(), case.evidence())
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()

    def _next_case(self, images: Iterator[tuple[str, np.ndarray]]) -> CaseInProgress | None:
        item = next(images, None)
        if item is None:
            return None
        return CaseInProgress(self._predictor, *item, len(self._predictor.list_of_parameters), self._device)

    @staticmethod
    def _passes(cases: Iterable[CaseInProgress], unfinished: deque[CaseInProgress]) -> Iterator[Pass]:
        for case in cases:
            unfinished.append(case)
            yield from case.passes()

    def _passes_of_a_job(self, case: CaseInProgress) -> int:
        if self._trial is not None and self._trial.accepted is None:
            return len(case.mirrors)  # a window, to be compared as a whole
        return self._batch_size.next()

    # ------------------------------------------------------------------------------------------- before the first batch

    def _prepare(self, first: CaseInProgress) -> None:
        """Networks, lanes, size of the batches and the trial of bfloat16; all of them fit the work that there is."""
        patch_voxels = math.prod(self._predictor.configuration_manager.patch_size)
        passes = self._num_cases * len(first.windows) * len(first.mirrors)
        if self._device.type == "cpu":
            bytes_per_pass = host_bytes_per_pass(
                self._predictor.network, self._predictor.configuration_manager.patch_size
            )
            lanes = min(self._num_threads, SETTINGS.most_lanes, largest_host_batch(bytes_per_pass), passes)
            self._num_lanes = max(1, lanes)
            largest = largest_host_batch(bytes_per_pass, self._num_lanes)
            fallback = max(1, SETTINGS.voxels_of_a_host_batch // patch_voxels)
        else:
            largest, fallback = passes, SETTINGS.passes_of_a_device_batch
        # all lanes call one network: each brings a thread, the rest are the network's own
        networks = self._predictor.networks_of_folds(self._num_threads - self._num_lanes + 1)
        largest = max(1, min(largest, -(-passes // self._num_lanes)))
        if self._device.type == "cuda":
            patch = next(first.passes()).patch()
            largest = largest_device_batch(lambda size: self._probe(networks[0], patch, size), self._device, largest)
        self._batch_size = BatchSize(fallback, largest, passes)
        self._free_lanes.append(_Lane(networks))
        self._free_lanes.extend(
            _Lane([shared_copy(network) for network in networks]) for _ in range(self._num_lanes - 1)
        )
        windows = self._num_cases * len(first.windows)
        can_trial = self._precision == "auto" and self._device.type == "cpu" and cpu_computes_bfloat16()
        if can_trial and passes * patch_voxels * len(networks) >= SETTINGS.voxels_worth_a_trial:
            wanted = max(round(SETTINGS.trial_share * windows), min(SETTINGS.usual_trial_windows, windows // 6))
            compared = max(1, min(SETTINGS.most_trial_windows, wanted))
            self._trial = PrecisionTrial(compared, 3 * compared, self._predictor.label_manager.has_regions)
        _LOGGER.info(
            "%d windows, %d mirrors, %d folds; %d lane(s) of %d thread(s)",
            *(windows, len(first.mirrors), len(networks), self._num_lanes, self._threads_of_a_lane),
        )

    @property
    def _threads_of_a_lane(self) -> int:
        return max(1, self._num_threads // self._num_lanes)

    def _probe(self, network: Any, patch: torch.Tensor, size: int) -> None:
        with torch.inference_mode(), self._autocast(self._bfloat16):
            network(patch[None].to(self._device).repeat(size, *(1 for _ in patch.shape)))

    def _start_lane(self) -> None:
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads_of_a_lane)

    # -------------------------------------------------------------------------------------------------------- in a lane

    def _run(self, job: Sequence[Pass]) -> None:
        """Run passes of any windows and cases with all folds, and add them to their cases."""
        lane = self._free_lanes.popleft()
        try:
            start = time.perf_counter()
            with torch.inference_mode():
                for fold, network in enumerate(lane.networks):
                    if fold == 0 and self._trial is not None and self._trial.accepted is None:
                        self._run_trial(self._trial, network, job)
                    else:
                        self._run_in_batches(network, fold, job, self._bfloat16)
            if self._batch_size.measuring:
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                self._batch_size.report(len(job), time.perf_counter() - start)
        finally:
            self._free_lanes.append(lane)

    def _run_in_batches(
        self, network: Any, fold: int, job: Sequence[Pass], bfloat16: bool, add: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Run the passes of a job with one fold, in batches that fit into memory.

        Args:
            network: of the fold.
            fold: its number.
            job: passes.
            bfloat16: run in bfloat16.
            add: to the cases; else only return.

        Returns:
            Logits (heads, ...) summed over the mirrors of the job's first window, and mean class probabilities there;
            None unless the whole job is one window.
        """
        waiting = deque([job])
        one_window = next(runs_of_windows(job)) == (0, len(job))
        total: torch.Tensor | None = None
        probabilities: list[torch.Tensor] = []
        while waiting:
            passes = waiting.popleft()
            try:
                summed, contributions, recorder = self._forward(network, passes, bfloat16)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(passes) == 1:
                    raise
                half = len(passes) // 2
                waiting.extendleft((passes[half:], passes[:half]))
                self._back_off(len(passes))
                continue
            if one_window:
                total = summed if total is None else total + summed
                if recorder is not None:
                    probabilities.append(torch.softmax(recorder.class_logits[0], -1))
            if add:
                if recorder is not None:
                    for index, item in enumerate(passes):
                        item.case.note_classes(fold, item, recorder, index)
                for start, end, contribution in contributions:
                    passes[start].case.add(passes[start].window, end - start, contribution)
        return total, torch.cat(probabilities).mean(0) if probabilities else None

    def _forward(
        self, network: Any, passes: Sequence[Pass], bfloat16: bool
    ) -> tuple[torch.Tensor, list[tuple[int, int, torch.Tensor]], ClassRecorder | None]:
        """One batch: summed logits of its first window; start, end and contribution of each window; class evidence."""
        recorder: ClassRecorder | None = None
        call = network
        if isinstance(self._predictor, JointPredictor):
            call = recorder = self._predictor.recorder(network)
        with self._autocast(bfloat16):
            logits = call(batch(passes, self._device))
        sums = [
            (start, end, summed_over_mirrors(passes[start:end], logits[start:end]))
            for start, end in runs_of_windows(passes)
        ]
        contributions = [(start, end, passes[start].case.contribution(summed)) for start, end, summed in sums]
        return sums[0][2], contributions, recorder

    def _run_trial(self, trial: PrecisionTrial, network: Any, job: Sequence[Pass]) -> None:
        """Run a window in float32, which counts, and in bfloat16, which is compared."""
        logits, classes = self._run_in_batches(network, 0, job, bfloat16=False)
        candidate, candidate_classes = self._run_in_batches(network, 0, job, bfloat16=True, add=False)
        if logits is None or candidate is None:
            raise RuntimeError("the trial compares whole windows, one at a time")
        with self._trial_lock:
            trial.compare(logits, candidate, classes, candidate_classes)
            self._bfloat16 = bool(trial.accepted)

    def _back_off(self, failed: int) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        _LOGGER.warning("out of memory with a batch of %d; going on with %d", failed, self._batch_size.back_off(failed))

    def _autocast(self, bfloat16: bool) -> contextlib.AbstractContextManager:
        if self._device.type == "cuda":
            return torch.autocast("cuda")  # as nnU-Net predicts
        if bfloat16:
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()
