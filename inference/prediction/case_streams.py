"""From preprocessed cases to predicted ones in bulk, with one model or two."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.bulk_prediction import BulkPredictor, PredictedCase
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import Precision

PreprocessedCase = tuple[str, Sequence[np.ndarray]]
"""Name and images (C, Z, Y, X): that of the masks' model first, that of the classes' model last."""


def in_bulk(
    predictor: SegmentationPredictor,
    class_predictor: JointPredictor,
    cases: Iterable[PreprocessedCase],
    num_cases: int,
    num_threads: int,
    precision: Precision,
) -> Iterator[PredictedCase]:
    """Predict cases in their order; see :class:`braintum.inference.prediction.bulk_prediction.BulkPredictor`.

    Args:
        predictor: predicts the masks.
        class_predictor: predicts the classes; may be the same.
        cases: preprocessed.
        num_cases: expected.
        num_threads: of the CPU.
        precision: of the network.
    """

    def predict(model: SegmentationPredictor, images: Iterable[PreprocessedCase], index: int) -> Iterator[Any]:
        bulk = BulkPredictor(model, num_cases, num_threads, precision)
        return bulk.predict((name, arrays[index]) for name, arrays in images)

    if class_predictor is predictor:
        yield from predict(predictor, cases, 0)
        return
    for_masks, for_classes = itertools.tee(cases)
    both = zip(predict(predictor, for_masks, 0), predict(class_predictor, for_classes, -1), strict=True)
    for masks, classes in both:
        yield PredictedCase(masks.name, masks.logits, classes.evidence)
