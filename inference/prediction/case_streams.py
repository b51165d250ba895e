"""From preprocessed cases to predicted ones, with one model or two, in bulk or one by one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.bulk_prediction import BulkPredictor, PredictedCase
from braintum.inference.prediction.class_evidence import ClassVerdict
from braintum.inference.prediction.exact_prediction import predict_one_by_one
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import available_cores
from braintum.inference.prediction.precision import Precision

PreprocessedCase = tuple[str, Sequence[np.ndarray]]
"""Name and images (C, Z, Y, X): that of the masks' model first, that of the classes' model last."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch has one thread, and afterwards as many as before.

    nnU-Net sets the number within prediction and export, which here run at the same time; the network gets its own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def predict_stream(
    predictor: SegmentationPredictor,
    class_predictor: JointPredictor | None,
    cases: Iterable[PreprocessedCase],
    num_cases: int,
    exact: bool,
    precision: Precision,
) -> Iterator[PredictedCase]:
    """Predict cases in their order, on all cores where the device is the CPU.

    Args:
        predictor: predicts the masks.
        class_predictor: predicts the classes; may be the same, or None for masks only.
        cases: preprocessed.
        num_cases: expected.
        exact: nnU-Net's order of computation; else in bulk, equal to rounding, in less time.
        precision: of the network in bulk.
    """
    # all cores, whatever OMP_NUM_THREADS says: many set it to 1 for nnU-Net's training
    num_threads = available_cores() if predictor.device.type == "cpu" else 1
    if exact:
        return predict_one_by_one(predictor, class_predictor, cases, num_cases, num_threads)
    return in_bulk(predictor, class_predictor, cases, num_cases, num_threads, precision)


def fault_of_answer(logits: np.ndarray, verdict: ClassVerdict | None) -> str | None:
    """What is wrong with what a network said of a case; None if nothing is."""
    if np.isfinite(logits).all() and (verdict is None or np.isfinite(verdict.probabilities).all()):
        return None
    return (
        "the network's answer is NaN or infinite; its checkpoint may be damaged: copy the model again, or choose "
        "another with -chk"
    )


def in_bulk(
    predictor: SegmentationPredictor,
    class_predictor: JointPredictor | None,
    cases: Iterable[PreprocessedCase],
    num_cases: int,
    num_threads: int,
    precision: Precision,
) -> Iterator[PredictedCase]:
    """Predict cases in their order; see :class:`braintum.inference.prediction.bulk_prediction.BulkPredictor`.

    Args:
        predictor: predicts the masks.
        class_predictor: predicts the classes; may be the same, or None for masks only.
        cases: preprocessed.
        num_cases: expected.
        num_threads: of the CPU.
        precision: of the network.
    """

    def predict(model: SegmentationPredictor, images: Iterable[PreprocessedCase], index: int) -> Iterator[Any]:
        bulk = BulkPredictor(model, num_cases, num_threads, precision)
        return bulk.predict((name, arrays[index]) for name, arrays in images)

    if class_predictor is None or class_predictor is predictor:
        yield from predict(predictor, cases, 0)
        return
    for_masks, for_classes = itertools.tee(cases)
    both = zip(predict(predictor, for_masks, 0), predict(class_predictor, for_classes, -1), strict=True)
    for masks, classes in both:
        yield PredictedCase(masks.name, masks.logits, classes.evidence)
