"""Calibrated class probabilities: how certain the model is, as often as it is right.

``braintum_calibrate`` stores a temperature in ``dataset.json`` of the model; here it is found, checked against the
weights that predict, and applied to what was aggregated over windows, mirrors and folds.
"""

import json
from pathlib import Path
from typing import Any

from braintum.conversion.format.calibration import Calibration
from braintum.conversion.format.cases import ClassSchema
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.class_evidence import ClassVerdict
from braintum.inference.results.results import case_result


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


def result_of(
    case: str,
    verdict: ClassVerdict,
    schema: ClassSchema,
    tumour_volume: tuple[float, str],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """As :func:`braintum.inference.results.results.case_result`; with a calibration, all probabilities are calibrated.

    Entropy, spreads and mutual information then are those of the calibrated probabilities, too.

    Args:
        case: identifier.
        verdict: aggregated class evidence, as predicted.
        schema: class names, in the order of the verdict.
        tumour_volume: of the predicted segmentation, and its unit.
        calibration: of the model; None leaves the probabilities.

    Returns:
        The result; with a calibration also ``calibration``, with ``temperature``, ``folds`` that it was fitted on,
        ``threshold`` and ``target_accuracy`` (None where there are none), ``verdict`` (the class, or ``uncertain``
        below the threshold) and ``raw_probabilities``.
    """
    if calibration is None:
        return case_result(case, verdict, schema, tumour_volume)
    result = case_result(case, verdict.at_temperature(calibration.temperature), schema, tumour_volume)
    return {
        **result,
        "calibration": {
            "temperature": calibration.temperature,
            "folds": list(calibration.folds),
            "threshold": calibration.threshold,
            "target_accuracy": calibration.target_accuracy,
            "verdict": calibration.verdict(result["predicted_class"], result["confidence"]),
            "raw_probabilities": dict(zip(schema.class_names, verdict.probabilities.tolist(), strict=True)),
        },
    }


def is_calibrated_with(result_file: Path, calibration: Calibration | None) -> bool:
    """Whether an earlier result was calibrated in this way, or not at all if None; False for a damaged file."""
    try:
        result = json.loads(result_file.read_text(encoding="utf-8"))
        found, trusted = result.get("calibration"), "trust" in result
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False
    if calibration is None or found is None:
        return calibration is None and found is None
    if trusted != (calibration.trust is not None):
        return False
    return (found["temperature"], found["threshold"]) == (calibration.temperature, calibration.threshold)
