"""Temperature scaling of a trained model's class probabilities, fitted on the cases that its folds held out.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599. One number is fitted:
it changes how certain the model says it is, never which class it names. Ours differs from the paper in three ways.
Probabilities are scaled after they were averaged over windows and mirrors. Patients count alike in the fit, however
many cases each has. What is said of the probabilities after calibration is cross-fitted: each fold is scaled with a
temperature that was fitted without it.

A temperature is fitted on predictions of single folds, because of an ensemble of all folds no case is held out. The
average over folds is less certain than its members, so that their temperature tends to make an ensemble too cautious.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from braintum.architectures.numpy_scalars import numpy_scalars_allowed
from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.format.calibration import CALIBRATION_KEY, Calibration, at_temperature
from braintum.conversion.format.trust import TRUST_KEY, Trust
from braintum.evaluation.calibration.reliability import CalibrationFigures, reliability
from braintum.evaluation.calibration.temperature import NoTemperatureError, fit_temperature
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.selective import RiskCoverage, risk_coverage, threshold_for
from braintum.evaluation.metrics.statistics import MIN_CLUSTERS, NUM_RESAMPLES, cluster_bootstrap
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.predictions import Predictions

MIN_CASES = 30
"""Fewer held-out cases are refused: the temperature would say more of them than of the model."""
FEW_ERRORS = 5
"""Wrong cases up to which the user is warned: they decide the temperature nearly alone."""
_FOLDS = 5  # of nnU-Net
_CROSS_FITTING_PARTS = 5  # of the patients, where a single fold gives no others


@dataclass(frozen=True)
class HeldOutCases:
    """Class predictions of cases by folds that did not see them in training.

    Attributes:
        names: of the cases; all have a known class.
        probabilities: (cases, classes), as predicted.
        labels: (cases,), index of the true class.
        folds: (cases,), that held the case out.
        clusters: (cases,), what the case belongs to: patient and near-duplicate group.
        num_patients: how many there are; None where they are not known.
        mirroring: whether mirrored images were predicted too.
        num_without_class: cases that were left out because their class is not known.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    clusters: np.ndarray
    num_patients: int | None
    mirroring: bool
    num_without_class: int = 0

    @property
    def patient_weights(self) -> np.ndarray:
        """(cases,), one divided by the number of cases of the same patient."""
        _, cluster_of_case, sizes = np.unique(self.clusters, return_inverse=True, return_counts=True)
        return 1 / sizes[cluster_of_case]

    @property
    def is_correct(self) -> np.ndarray:
        """(cases,) bool."""
        return self.probabilities.argmax(1) == self.labels


def held_out_cases(predictions: Predictions) -> HeldOutCases:
    """Class predictions of a model's folds.

    Args:
        predictions: of :func:`braintum.evaluation.results.predictions.predictions_of_folds`.

    Raises:
        ValueError: the model predicts no classes.
    """
    table = CaseTable(predictions, {}, [])  # classes only: no mask is read
    probabilities = table.probabilities
    if probabilities is None:
        raise ValueError(
            f"{predictions.name} predicts no classes, or its validation wrote none: there is nothing to calibrate; "
            "validate again with nnUNetv2_train ... --val if its trainer does predict classes"
        )
    known = table.true_class != UNKNOWN
    patients = [patient for patient, chosen in zip(table.patients, known, strict=True) if chosen]
    spreads = [predictions.class_results[case].get("mirror_spread") for case in table.cases]
    return HeldOutCases(
        tuple(case for case, chosen in zip(table.cases, known, strict=True) if chosen),
        probabilities[known],
        table.true_class[known],
        np.array([predictions.fold_of_case[case] for case in table.cases])[known],
        np.array(table.clusters)[known],
        len(set(patients)) if table.knows_patients else None,
        any(spread is not None and any(value is not None for value in spread.values()) for spread in spreads),
        int((~known).sum()),
    )


def check_cases(cases: HeldOutCases, class_names: Sequence[str]) -> None:
    """Refuse what no temperature can be fitted on.

    Raises:
        ValueError: too few cases, or cases of one class.
    """
    if len(cases.labels) < MIN_CASES:
        raise ValueError(
            f"{len(cases.labels)} held-out cases with a known class are too few to fit a temperature on (at least "
            f"{MIN_CASES}); {_more_cases(cases)}"
        )
    present = np.unique(cases.labels)
    if len(present) < 2:
        raise ValueError(
            f"all held-out cases are {class_names[present[0]]}: certainty can only be calibrated where classes can be "
            "mistaken for each other; train and validate folds with other classes"
        )


def _more_cases(cases: HeldOutCases) -> str:
    if len(np.unique(cases.folds)) < _FOLDS:
        return "train and validate more folds, where there are any, or add cases"
    return f"add cases: all {_FOLDS} folds are validated"


def cross_fitted(cases: HeldOutCases) -> tuple[np.ndarray, dict[str, float]]:
    """Probabilities at temperatures that were fitted without the case's own fold.

    With a single fold the patients are divided into five parts, and each part is scaled without its own.

    Returns:
        (cases, classes), and the temperature by fold (or part).

    Raises:
        NoTemperatureError: without some fold the cases determine no temperature.
    """
    parts = cases.folds
    if len(np.unique(parts)) == 1:
        parts = parts_of_patients(cases.clusters)
    weights = cases.patient_weights
    scaled = np.empty(cases.probabilities.shape)
    temperatures = {}
    for part in np.unique(parts):
        own = parts == part
        try:
            temperature = fit_temperature(cases.probabilities[~own], cases.labels[~own], weights[~own])
        except NoTemperatureError as error:
            raise NoTemperatureError(f"without fold or part {part}: {error}") from error
        scaled[own] = at_temperature(cases.probabilities[own], temperature)
        temperatures[str(part)] = temperature
    return scaled, temperatures


def parts_of_patients(clusters: np.ndarray) -> np.ndarray:
    """A part for each case, (cases,); a patient lies in one of them."""
    from sklearn.model_selection import GroupKFold

    num_parts = min(_CROSS_FITTING_PARTS, len(np.unique(clusters)))
    if num_parts < 2:
        raise NoTemperatureError("all held-out cases are of one patient: none can be left out")
    parts = np.empty(len(clusters), dtype=np.int64)
    for part, (_, held_out) in enumerate(GroupKFold(num_parts).split(clusters, groups=clusters)):
        parts[held_out] = part
    return parts


def calibrate(
    cases: HeldOutCases,
    class_names: Sequence[str],
    target_accuracy: float | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Temperature, threshold and everything that tells how good they are.

    Args:
        cases: held-out predictions.
        class_names: of the model.
        target_accuracy: that accepted cases are to reach with 95 % certainty; None chooses no threshold.
        num_resamples: of the bootstrap over patients.
        seed: of the resamples.

    Returns:
        For JSON, None where undefined: ``temperature``, ``temperature_low`` and ``temperature_high`` (95 % interval
        over patients), ``folds``, ``num_cases``, ``num_patients``, ``num_without_class``, ``accuracy``, ``before`` and
        ``after`` (``ece``, ``nll``, ``brier``, each with ``_low`` and ``_high``; the latter cross-fitted and None
        where it cannot be), ``cross_fitted_over`` (``folds``, or ``patients`` of a single fold) and
        ``temperature_without`` (fold or part → temperature of the others), ``reliability`` (``before`` and ``after``:
        see :func:`~braintum.evaluation.calibration.reliability.reliability`), ``risk_coverage`` (``coverage``,
        ``risk``, ``threshold``: confidence at the temperature), ``aurc``, ``target_accuracy``, ``threshold``,
        ``coverage_at_threshold``, ``accuracy_at_threshold`` and ``warnings``.

    Raises:
        ValueError: the cases determine no temperature, see :func:`check_cases` and :func:`fit_temperature`.
    """
    check_cases(cases, class_names)
    warnings = []
    weights, labels = cases.patient_weights, cases.labels
    temperature = fit_temperature(cases.probabilities, labels, weights)
    num_errors = int((~cases.is_correct).sum())
    if num_errors <= FEW_ERRORS:
        warnings.append(f"only {num_errors} of {len(labels)} held-out cases are wrong; they decide the temperature")
    if len(np.unique(cases.clusters)) < MIN_CLUSTERS:
        warnings.append(f"fewer than {MIN_CLUSTERS} patients: there are no intervals")
    try:
        scaled, temperature_without = cross_fitted(cases)
    except NoTemperatureError as error:
        scaled, temperature_without = None, {}
        warnings.append(f"calibration cannot be checked by cross-fitting: {error}")

    figures = {"before": CalibrationFigures(cases.probabilities, labels)}
    if scaled is not None:
        figures["after"] = CalibrationFigures(scaled, labels)

    def statistic(multiplicity: np.ndarray) -> dict[str, float]:
        found = {f"{when} {name}": value for when, of in figures.items() for name, value in of(multiplicity).items()}
        chosen = multiplicity > 0
        try:
            found["temperature"] = fit_temperature(
                cases.probabilities[chosen], labels[chosen], (weights * multiplicity)[chosen]
            )
        except NoTemperatureError:
            found["temperature"] = float("nan")
        return found

    estimates = cluster_bootstrap(statistic, cases.clusters, num_resamples, seed=seed)

    def with_interval(key: str, name: str) -> dict[str, float | None]:
        if key not in estimates:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        low, high = estimates[key].interval or (None, None)
        return {name: estimates[key].value, f"{name}_low": low, f"{name}_high": high}

    calibrated = at_temperature(cases.probabilities, temperature)
    confidence = calibrated.max(1)
    curve = risk_coverage(confidence, cases.is_correct)
    threshold = None
    if target_accuracy is not None:
        threshold = threshold_for(target_accuracy, confidence, cases.is_correct, cases.clusters)
        if threshold is None:
            warnings.append(
                f"an accuracy of {target_accuracy:g} cannot be promised with 95 % certainty for any share of the "
                f"cases, so there is no threshold; ask for less, or {_more_cases(cases)}"
            )
    accepted = np.zeros(len(labels), dtype=bool) if threshold is None else confidence >= threshold
    return {
        **with_interval("temperature", "temperature"),
        "folds": np.unique(cases.folds).tolist(),
        "num_cases": len(labels),
        "num_patients": cases.num_patients,
        "num_without_class": cases.num_without_class,
        "accuracy": float(cases.is_correct.mean()),
        **{
            when: {k: v for name in ("ece", "nll", "brier") for k, v in with_interval(f"{when} {name}", name).items()}
            for when in ("before", "after")
        },
        "cross_fitted_over": "folds" if len(np.unique(cases.folds)) > 1 else "patients",
        "temperature_without": temperature_without,
        "reliability": {
            "before": reliability(cases.probabilities, labels),
            "after": [] if scaled is None else reliability(scaled, labels),
        },
        "risk_coverage": _points(curve),
        "aurc": curve.area,
        "target_accuracy": target_accuracy,
        "threshold": threshold,
        "coverage_at_threshold": None if threshold is None else float(accepted.mean()),
        "accuracy_at_threshold": None if threshold is None else float(cases.is_correct[accepted].mean()),
        "warnings": warnings,
    }


def _points(curve: RiskCoverage) -> list[dict[str, float]]:
    rows = zip(curve.coverage.tolist(), curve.risk.tolist(), curve.thresholds.tolist(), strict=True)
    return [{"coverage": coverage, "risk": risk, "threshold": threshold} for coverage, risk, threshold in rows]


def calibration_entry(
    figures: Mapping[str, Any],
    cases: HeldOutCases,
    checkpoint: str,
    fingerprints: Mapping[str, str],
    trust: Trust | None = None,
) -> Calibration:
    """What the model keeps of :func:`calibrate`.

    Args:
        figures: of :func:`calibrate`.
        cases: that it was given.
        checkpoint: name of the checkpoint that predicted them.
        fingerprints: see :func:`checkpoint_fingerprints`.
        trust: what is promised beside.
    """
    return Calibration(
        temperature=figures["temperature"],
        folds=tuple(figures["folds"]),
        checkpoint=checkpoint,
        fingerprints=fingerprints,
        aggregation="weighted",  # what the trainers' validation uses
        mirroring=cases.mirroring,
        num_cases=figures["num_cases"],
        num_patients=figures["num_patients"],
        target_accuracy=figures["target_accuracy"],
        threshold=figures["threshold"],
        before={name: figures["before"][name] for name in ("ece", "nll", "brier")},
        after={name: figures["after"][name] for name in ("ece", "nll", "brier")},
        trust=trust,
    )


def checkpoint_fingerprints(model_folder: Path, folds: Sequence[int], checkpoint: str) -> dict[str, str]:
    """Fold (as text) → fingerprint of the weights in its checkpoint.

    Raises:
        FileNotFoundError: a checkpoint is missing.
        ValueError: it cannot be read.
    """
    import torch

    found = {}
    for fold in folds:
        file = model_folder / f"fold_{fold}" / checkpoint
        if not file.is_file():
            raise FileNotFoundError(f"no checkpoint at {file}; name the one that was validated with -chk")
        try:
            with numpy_scalars_allowed():
                weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["network_weights"]
            found[str(fold)] = weights_fingerprint(weights)
        except Exception as error:  # torch raises whatever it likes
            raise ValueError(f"{file} is damaged, or no checkpoint of this package's trainers: {error}") from error
    return found


def store_calibration(model_folder: Path, calibration: Calibration) -> None:
    """Write a calibration into ``dataset.json`` of a model folder, in place of an earlier one."""
    file = model_folder / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop(TRUST_KEY, None)
    trust = {} if calibration.trust is None else {TRUST_KEY: calibration.trust.to_json()}
    write_json_atomic(file, {**content, CALIBRATION_KEY: calibration.to_json(), **trust})
