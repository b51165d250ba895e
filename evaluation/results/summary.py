"""Means, intervals and rates of a set of predictions: everything that tables and reports are made of."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from braintum.commands.version import __version__
from braintum.conversion.format.patients import patient_class, patient_probabilities
from braintum.evaluation.metrics.classification_metrics import ResampledClassification, classification_metrics
from braintum.evaluation.metrics.joint_metrics import UNKNOWN, joint_metrics, joint_rates
from braintum.evaluation.metrics.statistics import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Estimate,
    bootstrap_means,
    cluster_bootstrap,
    flat_figures,
)
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.predictions import Predictions

_COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
_OVERALL = ("accuracy", "balanced_accuracy", "macro_f1")


def summarise_table(table: CaseTable, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """All figures of a set of predictions.

    Args:
        table: figures of each case.
        num_resamples: of the bootstrap over patients.
        seed: of the resamples.

    Returns:
        For JSON; None stands for undefined. ``segmentation`` (label → ``figures`` by group of cases and metric,
        ``num_cases`` by group, and ``false_masks`` in cases without that label), ``dice``, ``classification``,
        ``joint``, ``patients`` (the same figures with the patient as the case), ``folds``, ``class_by_region``, and
        what they were computed from. A figure has ``value`` (of masks: a mean over cases, with ``sd`` and
        ``median``), ``low`` and ``high`` (95 % interval over patients) and ``num_cases``.
    """
    summary: dict[str, Any] = {
        "name": table.predictions.name,
        "braintum_version": __version__,
        "num_cases": len(table.cases),
        "num_missing": len(table.predictions.missing),
        "failed": _without_folders(table.predictions),
        "num_patients": len(set(table.patients)) if table.knows_patients else None,
        "num_clusters": len(set(table.clusters)),
        "length_unit": table.unit,
        "confidence": CONFIDENCE,
        "num_resamples": num_resamples,
        "segmentation": {label: _segmentation(table, label, num_resamples, seed) for label in table.labels},
        "dice": _means({"Dice": table.dice}, table.clusters, num_resamples, seed)["Dice"],
    }
    if table.probabilities is not None:
        summary["classification"] = _classification(table, num_resamples, seed)
    summary["joint"] = _joint(table, num_resamples, seed)
    if table.knows_patients and len(set(table.patients)) < len(table.cases):
        summary["patients"] = _patients(table, num_resamples, seed)
    if table.predictions.fold_of_case:
        summary["folds"] = _folds(table)
    if regions := _class_by_region(table):
        summary["class_by_region"] = regions
    return summary


def _without_folders(predictions: Predictions) -> dict[str, str]:
    """What is wrong with the cases that failed; exported models carry it, and a path tells of its owner."""
    files = (*predictions.masks.values(), *predictions.references.values())
    faults = dict(predictions.failed)
    for folder in {f"{file.parent}{os.sep}" for file in files}:
        faults = {case: fault.replace(folder, "") for case, fault in faults.items()}
    return faults


def figure(value: float, estimate: Estimate | None = None, **more: Any) -> dict[str, Any]:
    """A figure for JSON: ``value``, ``low`` and ``high``, undefined ones as None."""
    low, high = (None, None) if estimate is None or estimate.interval is None else estimate.interval
    return {"value": _defined(value), "low": low, "high": high, **more}


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _means(
    values: Mapping[str, np.ndarray], clusters: Sequence[str], num_resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Mean, spread and interval of per-case values; cases whose value is undefined do not count."""
    estimates = bootstrap_means(values, clusters, num_resamples, seed=seed)
    figures = {}
    for name, column in values.items():
        defined = column[np.isfinite(column)]
        figures[name] = figure(
            estimates[name].value,
            estimates[name],
            sd=float(defined.std(ddof=1)) if len(defined) > 1 else None,
            median=float(np.median(defined)) if len(defined) else None,
            num_cases=len(defined),
        )
    return figures


def _segmentation(table: CaseTable, label: str, num_resamples: int, seed: int) -> dict[str, Any]:
    """Figures over the cases that truly have a label, and how often it is found where there is none.

    Apart, because where truth has no voxel Dice is 0 or undefined and says nothing of how much was marked.
    """
    values = {name: table.metric(label, name) for name in table.metric_names if name not in _COUNTS}
    clusters = np.array(table.clusters)
    shown = table.shows(label)
    classes = {name: shown & (table.true_class == index) for index, name in enumerate(_names(table))}
    groups = {"all": shown, **{name: members for name, members in classes.items() if members.any()}}
    absent = table.has_truth & ~shown
    false_volumes = values["predicted_volume"][absent & (values["predicted_volume"] > 0)]
    false_rate = (
        bootstrap_means({"": (values["predicted_volume"][absent] > 0)}, clusters[absent], num_resamples, seed=seed)[""]
        if absent.any()
        else None
    )
    return {
        "num_cases": {name: int(members.sum()) for name, members in groups.items()},
        "figures": {
            name: _means(
                {key: column[members] for key, column in values.items()}, clusters[members], num_resamples, seed
            )
            for name, members in groups.items()
            if members.any()
        },
        "false_masks": figure(
            np.nan if false_rate is None else false_rate.value,
            false_rate,
            count=len(false_volumes),
            num_cases=int(absent.sum()),
            mean_volume=float(false_volumes.mean()) if len(false_volumes) else None,
        ),
    }


def _classification(table: CaseTable, num_resamples: int, seed: int) -> dict[str, Any]:
    """Figures of the cases whose class is known and was not withheld."""
    known = table.true_class != UNKNOWN
    answered = known & (table.predicted_class != UNKNOWN)
    figures = _class_figures(
        table.true_class[answered],
        table.predicted_class[answered],
        _rows(table.probabilities, answered),
        _names(table),
        np.array(table.clusters)[answered],
        num_resamples,
        seed,
    )
    return {**figures, "num_unknown": int((~known).sum()), "num_withheld": int((known & ~answered).sum())}


def _class_figures(
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray | None,
    class_names: Sequence[str],
    clusters: np.ndarray,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    metrics = classification_metrics(labels, predictions, class_names, probabilities)
    estimates: Mapping[str, Estimate] = {}
    if len(labels):
        of_resample = ResampledClassification(labels, predictions, class_names, probabilities)
        estimates = cluster_bootstrap(
            lambda weights: flat_figures(of_resample(weights)), clusters.tolist(), num_resamples, seed=seed
        )

    def figures(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        return {
            name: value
            if name.startswith("num_") or isinstance(value, list)
            else figure(np.nan if value is None else value, estimates.get(prefix + name))
            for name, value in values.items()
            if not isinstance(value, Mapping)
        }

    per_class = {name: figures(values, f"per_class.{name}.") for name, values in metrics["per_class"].items()}
    return {**figures(metrics), "per_class": per_class}


def _joint(table: CaseTable, num_resamples: int, seed: int) -> dict[str, Any]:
    cases = (
        table.true_class,
        table.predicted_class,
        table.metric(table.whole_tumour, "Dice"),
        table.predicted_volume,
        table.true_volume,
        table.negative_index,
    )
    rates = joint_rates(*cases)
    columns = np.array(list(rates.values()), dtype=np.float64)  # (rates, 2, cases)

    def of_resample(weights: np.ndarray) -> dict[str, float]:
        counts = zip(rates, columns @ weights, strict=True)
        return {name: hits / num_cases if num_cases else np.nan for name, (hits, num_cases) in counts}

    estimates = cluster_bootstrap(of_resample, table.clusters, num_resamples, seed=seed)
    result: dict[str, Any] = {}
    for name, value in joint_metrics(*cases).items():
        if isinstance(value, Mapping):
            more = {key: _defined(entry) for key, entry in value.items() if key.endswith("_volume")}
            counts = {key: value[key] for key in ("count", "num_cases")}
            result[name] = figure(value["rate"], estimates[name], **counts, **more)
        else:
            result[name] = value
    return result


def _patients(table: CaseTable, num_resamples: int, seed: int) -> dict[str, Any]:
    """The same figures with the patient as the case.

    Dice of a patient is that of all voxels of the patient's cases together, as if they were one volume, of patients
    that truly have the label; the class probabilities of a patient are the mean over the patient's cases.
    """
    patients = list(dict.fromkeys(table.patients))
    cluster_of = dict(zip(table.patients, table.clusters, strict=True))
    clusters = [cluster_of[patient] for patient in patients]
    number_of = {patient: number for number, patient in enumerate(patients)}
    index = np.array([number_of[patient] for patient in table.patients])
    dice = {}
    for label in table.labels:
        tp, fp, fn = (np.bincount(index, table.metric(label, name), len(patients)) for name in ("TP", "FP", "FN"))
        dice[label] = np.divide(2 * tp, 2 * tp + fp + fn, out=np.full(len(tp), np.nan), where=tp + fn > 0)
    result: dict[str, Any] = {"num_patients": len(patients), "Dice": _means(dice, clusters, num_resamples, seed)}
    if table.probabilities is None or table.predictions.schema is None:
        return result
    names = _names(table)
    patient_of_case = dict(zip(table.cases, table.patients, strict=True))
    probabilities = patient_probabilities(dict(zip(table.cases, table.probabilities, strict=True)), patient_of_case)
    true_classes: dict[str, list[str]] = {patient: [] for patient in patients}
    for patient, label in zip(table.patients, table.true_class, strict=True):
        true_classes[patient].append("" if label == UNKNOWN else names[label])
    negative = table.predictions.schema.negative_class
    classes = {patient: patient_class(found, negative) for patient, found in true_classes.items()}
    known = [patient for patient in patients if classes[patient] is not None]
    rows = np.array([probabilities[patient] for patient in known]).reshape(-1, len(names))
    result["classification"] = _class_figures(
        np.array([names.index(str(classes[patient])) for patient in known], np.int64),
        rows.argmax(1),
        rows,
        names,
        np.array([cluster_of[patient] for patient in known]),
        num_resamples,
        seed,
    )
    result["num_without_one_class"] = len(patients) - len(known)
    return result


def _folds(table: CaseTable) -> dict[str, Any]:
    """Headline figures of each fold, and their mean and standard deviation over folds."""
    fold_of_case = np.array([table.predictions.fold_of_case[case] for case in table.cases])
    folds: dict[str, dict[str, Any]] = {}
    for fold in sorted(set(fold_of_case.tolist())):
        members = fold_of_case == fold
        dice = table.dice[members]
        folds[str(fold)] = {
            "num_cases": int(members.sum()),
            "Dice": float(np.nanmean(dice)) if np.isfinite(dice).any() else None,
        }
        if table.probabilities is not None:
            judged = members & (table.true_class != UNKNOWN) & (table.predicted_class != UNKNOWN)
            metrics = classification_metrics(table.true_class[judged], table.predicted_class[judged], _names(table))
            folds[str(fold)] |= {name: _defined(metrics[name]) for name in _OVERALL}
    mean: dict[str, Any] = {}
    for name in [name for name in next(iter(folds.values())) if name != "num_cases"]:
        values = [values[name] for values in folds.values() if values[name] is not None]
        mean[name] = {
            "value": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "num_folds": len(values),
        }
    return {"per_fold": folds, "mean": mean}


def _class_by_region(table: CaseTable) -> dict[str, Any]:
    """Accuracy of the class by the region that the classifier sees (BrainTumNet, paper 000, table 2)."""
    regions = {}
    known = table.true_class != UNKNOWN
    for region in table.labels:
        probabilities = table.probabilities_of("by_region", region)
        if probabilities is not None and known.any():
            metrics = classification_metrics(table.true_class[known], probabilities[known].argmax(1), _names(table))
            regions[region] = {name: _defined(metrics[name]) for name in _OVERALL} | {"num_cases": int(known.sum())}
    return regions


def _names(table: CaseTable) -> Sequence[str]:
    schema = table.predictions.schema
    return () if schema is None else schema.class_names


def _rows(values: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[chosen]
