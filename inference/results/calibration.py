"""Calibrated class probabilities: how certain the model is, as often as it is right.

``braintum_calibrate`` stores a temperature in ``dataset.json`` of the model; here it is found, checked against the
weights that predict, and applied to what was aggregated over windows, mirrors and folds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.format.calibration import Calibration, at_temperature
from braintum.inference.models.segmentation_predictor import SegmentationPredictor


def calibration_of(
    predictor: SegmentationPredictor, checkpoint: str, aggregation: str
) -> tuple[Calibration, list[str]]:
    """The calibration of a model, and why it may not hold for what predicts.

    Args:
        predictor: of the classes; initialised from a model folder.
        checkpoint: that it was initialised with.
        aggregation: see :func:`braintum.inference.prediction.class_evidence.aggregate`.

    Returns:
        The calibration, and warnings: other folds, other weights, another aggregation, other mirroring.

    Raises:
        ValueError: the model has no calibration, or a damaged one.
    """
    model_folder = predictor.model_folder
    calibration = Calibration.from_dataset_json(predictor.dataset_json)
    if calibration is None or model_folder is None:
        raise ValueError(
            f"{model_folder} is not calibrated; fit it with braintum_calibrate -m {model_folder}, or predict without "
            "--calibrated"
        )
    weights = dict(zip(map(str, predictor.folds), predictor.fingerprints, strict=True))
    fitted = [str(fold) for fold in calibration.folds]
    warnings = []
    if set(weights) != set(fitted):
        warnings.append(
            f"the calibration was fitted on fold {', '.join(fitted)}, but fold {', '.join(weights)} predicts; fit it "
            f"on these with braintum_calibrate -f, or predict with fold {' '.join(fitted)}"
        )
    changed = [
        fold
        for fold, own in weights.items()
        if fold in calibration.fingerprints and own != calibration.fingerprints[fold]
    ]
    if changed:
        warnings.append(
            f"the weights in {checkpoint} of fold {', '.join(changed)} are not those that the calibration was fitted "
            f"on ({calibration.checkpoint} at that time); validate and run braintum_calibrate again"
        )
    if aggregation != calibration.aggregation:
        warnings.append(
            f"the calibration was fitted with -aggregation {calibration.aggregation}, this prediction uses "
            f"{aggregation}"
        )
    mirroring = bool(predictor.use_mirroring and predictor.allowed_mirroring_axes)
    if mirroring != calibration.mirroring:
        state = {True: "with mirroring", False: "without mirroring"}
        warnings.append(
            f"the calibration was fitted {state[calibration.mirroring]}, this prediction is {state[mirroring]}"
        )
    return calibration, warnings


def calibrated_result(result: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """A case's result with calibrated ``probabilities`` and ``confidence``; everything else stays as predicted.

    Args:
        result: of :func:`braintum.inference.results.results.case_result`.
        calibration: of the model.

    Returns:
        The result; also ``calibration``, with ``temperature``, ``folds`` that it was fitted on, ``threshold`` and
        ``target_accuracy`` (None where there are none), ``verdict`` (the class, or ``uncertain`` below the threshold)
        and ``raw_probabilities``.
    """
    names = list(result["probabilities"])
    values = at_temperature(np.array([result["probabilities"][name] for name in names]), calibration.temperature)
    probabilities = dict(zip(names, values.tolist(), strict=True))
    confidence = probabilities[result["predicted_class"]]
    return {
        **result,
        "confidence": confidence,
        "probabilities": probabilities,
        "calibration": {
            "temperature": calibration.temperature,
            "folds": list(calibration.folds),
            "threshold": calibration.threshold,
            "target_accuracy": calibration.target_accuracy,
            "verdict": calibration.verdict(result["predicted_class"], confidence),
            "raw_probabilities": dict(result["probabilities"]),
        },
    }


def is_calibrated_with(result_file: Path, calibration: Calibration | None) -> bool:
    """Whether an earlier result was calibrated in this way, or not at all if None; False for a damaged file."""
    try:
        found = json.loads(result_file.read_text(encoding="utf-8")).get("calibration")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False
    if calibration is None or found is None:
        return calibration is None and found is None
    return (found["temperature"], found["threshold"]) == (calibration.temperature, calibration.threshold)
