"""Prediction whose files are nnU-Net's: one window and mirror at a time, in its order, with its buffers.

Several threads ("lanes") predict a case each on the CPU, where several threads of one network would wait for each other
whenever something else, such as the reading of the next case, takes one of their cores.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.bulk_prediction import PredictedCase
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import host_bytes_per_pass, largest_host_batch

_MOST_LANES = 8
_BYTES_OF_A_LOGIT = 12  # of one fold, their sum over folds, and what is being written


def predict_one_by_one(
    predictor: SegmentationPredictor,
    class_predictor: JointPredictor | None,
    cases: Iterable[tuple[str, Sequence[np.ndarray]]],
    num_cases: int,
    num_threads: int,
) -> Iterator[PredictedCase]:
    """Predict cases in their order.

    Args:
        predictor: predicts the masks.
        class_predictor: predicts the classes; may be the same, or None for masks only.
        cases: name and images (C, Z, Y, X), that of ``predictor`` first, that of ``class_predictor`` last.
        num_cases: expected.
        num_threads: of the CPU, for all lanes together.
    """
    images = iter(cases)
    first = next(images, None)
    if first is None:
        return
    others = [] if class_predictor is None or class_predictor is predictor else [class_predictor]
    models: list[Any] = [predictor, *others]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(model.folds_in_memory())
        num_lanes = _num_lanes(models, first[1], num_cases, num_threads)
        lanes = deque([models, *([model.twin() for model in models] for _ in range(num_lanes - 1))])

        def predict(name: str, arrays: Sequence[np.ndarray]) -> PredictedCase:
            lane = lanes.popleft()
            try:
                logits = lane[0].predict_logits_from_preprocessed_data(torch.from_numpy(arrays[0])).numpy()
                if len(lane) > 1:
                    lane[1].predict_logits_from_preprocessed_data(torch.from_numpy(arrays[-1]))
                return PredictedCase(name, logits, [] if class_predictor is None else lane[-1].evidence)
            finally:
                lanes.append(lane)

        if num_lanes == 1:
            torch.set_num_threads(num_threads)
            for case in itertools.chain([first], images):
                yield predict(*case)
            return
        threads = (max(1, num_threads // num_lanes),)
        pool = stack.enter_context(ThreadPoolExecutor(num_lanes, initializer=torch.set_num_threads, initargs=threads))
        running: deque[Future[PredictedCase]] = deque()
        for case in itertools.chain([first], images):
            running.append(pool.submit(predict, *case))
            if len(running) > num_lanes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _num_lanes(
    models: Sequence[SegmentationPredictor], images: Sequence[np.ndarray], num_cases: int, num_threads: int
) -> int:
    if models[0].device.type != "cpu" or not all(model.can_have_twins for model in models):
        return 1
    bytes_of_a_lane = sum(
        host_bytes_per_pass(model.network, model.configuration_manager.patch_size)
        + _BYTES_OF_A_LOGIT * model.label_manager.num_segmentation_heads * image[0].size
        for model, image in zip(models, (images[0], images[-1]), strict=False)
    )
    return min(num_threads, _MOST_LANES, num_cases, largest_host_batch(bytes_of_a_lane))
