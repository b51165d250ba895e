"""The charts of a report: which figures go into which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from braintum.evaluation.calibration.calibration import reliability
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.report import figures, tables
from braintum.evaluation.report.curves import (
    Curve,
    dice_by_size,
    micro_average_roc,
    precision_recall_curves,
    risk_coverage_of,
    roc_curves,
)
from braintum.evaluation.report.report import Report
from braintum.evaluation.results.tables import number

_LOSSES = {"train_losses": "training", "val_losses": "validation"}
_CLASS_LOSSES = {"train_class_losses": "training", "val_class_losses": "validation"}
_OVERLAP = {"train_dice": "Dice", "train_iou": "IoU"}
_SCORES = {"ema_fg_dice": "Dice, smoothed", "class_macro_f1": "macro-F1"}


def training_charts(report: Report) -> list[tuple[str, str]]:
    """Title and chart of what the trainers logged; empty without logs."""
    logs = {fold: log.curves for fold, log in report.facts.logs.items()}
    charts = []
    for key, title, keys, label in (
        ("losses", "Loss", _LOSSES, "loss"),
        ("class-losses", "Class loss", _CLASS_LOSSES, "class loss"),
        ("overlap", "Overlap in training batches", _OVERLAP, "overlap"),
        ("scores", "Scores of validation patches", _SCORES, "score"),
    ):
        known = {name: text for name, text in keys.items() if any(name in curves for curves in logs.values())}
        if known:
            charts.append((title, figures.training_curves(f"training-{key}", logs, known, label)))
    return charts


def mask_charts(report: Report) -> dict[str, Any]:
    """Dice by class and by size, charts and table; empty where no case shows a tumour."""
    table, unit = report.table, report.size_unit
    defined = np.isfinite(table.dice)
    if not defined.any():
        return {}
    names, classes = report.true_class_names, report.class_names
    by_class = {name or "unknown": table.dice[defined & (names == name)] for name in (*classes, "")}
    by_class = {name: values for name, values in by_class.items() if len(values)}
    known = defined & np.isfinite(table.true_volume) & (table.true_volume > 0)
    sizes = dice_by_size(table.true_volume, table.dice, table.clusters)
    # in the order of the classes, so that colours agree between the two charts
    order = np.concatenate([np.flatnonzero(known & (names == name)) for name in (*classes, "")])
    scatter = figures.dice_against_size(
        "dice-size", sizes, table.true_volume[order], table.dice[order], names[order].tolist(), unit
    )
    return {
        "by_class": figures.dice_by_class("dice-class", by_class),
        "by_size": scatter,
        "sizes": tables.size_table(sizes, unit),
    }


def class_section(report: Report) -> dict[str, Any] | None:
    """Charts and tables of the cases whose class is known and was not withheld; None without any."""
    table, class_names = report.table, report.class_names
    classification = report.summary.get("classification")
    if classification is None or not classification["num_cases"]:
        return None
    content: dict[str, Any] = {
        "table": tables.class_table(classification, class_names),
        "confusion": tables.confusion_table(classification, class_names),
        "num_unknown": classification["num_unknown"],
        "num_withheld": classification["num_withheld"],
        "num_cases": classification["num_cases"],
    }
    judged = (table.true_class != UNKNOWN) & (table.predicted_class != UNKNOWN)
    if table.probabilities is None:
        return content
    labels, probabilities = table.true_class[judged], table.probabilities[judged]
    roc, precision = (f(labels, probabilities, class_names) for f in (roc_curves, precision_recall_curves))
    axes = ("false-positive rate", "sensitivity")
    if roc:
        roc = [*roc, micro_average_roc(labels, probabilities)]
        content["roc"] = figures.class_curves("roc", roc, "ROC curves, area under each", axes, True)
        title = "Precision-recall curves, average precision of each"
        content["pr"] = figures.class_curves("pr", precision, title, ("recall", "precision"), False)
    bins, risk = reliability(probabilities, labels), risk_coverage_of(labels, probabilities)
    content["reliability_table"] = tables.reliability_table(bins)
    content["aurc"] = number(risk.figure)
    calibration = report.calibration
    content["reliability"] = figures.reliability_diagram("reliability", _reliability_series(calibration, bins))
    content["risk"] = _risk_chart(calibration, risk)
    return content


def _reliability_series(
    calibration: Mapping[str, Any] | None, bins: Sequence[Mapping[str, float]]
) -> dict[str, Sequence[Mapping[str, float]]]:
    """The bins of this report, and those after calibration where there is one."""
    after = [] if calibration is None else calibration["reliability"]["after"]
    return {"before": bins, "after calibration": after} if after else {"": bins}


def _risk_chart(calibration: Mapping[str, Any] | None, risk: Curve) -> str:
    if calibration is None or not calibration.get("risk_coverage"):
        return figures.risk_coverage_curve("risk", {"": risk})
    points = calibration["risk_coverage"]
    curve = Curve(
        "",
        np.array([point["coverage"] for point in points], dtype=np.float64),
        np.array([point["risk"] for point in points], dtype=np.float64),
        float(calibration["aurc"]),
    )
    coverage, marked = calibration.get("coverage_at_threshold"), None
    if calibration.get("threshold") is not None and coverage:
        marked = (float(coverage), float(curve.y[np.argmin(abs(curve.x - coverage))]))
    return figures.risk_coverage_curve("risk", {"before": risk, "after calibration": curve}, marked)


def trust_chart(trust: Mapping[str, Any] | None) -> str | None:
    """What accepted masks lack of a Dice of 1; None where nothing is promised of masks."""
    if trust is None or trust["masks"] is None:
        return None
    points = trust["masks"]["risk_coverage"]
    coverage, risk = np.array(points["coverage"]), 1 - np.array(points["dice"])
    return figures.risk_coverage_curve("trust-risk", {"1 − Dice": Curve("", coverage, risk, float(risk.mean()))})


def stress_charts(stress: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Title, description and chart of every corruption; empty without a stress test."""
    charts: list[tuple[str, str, str]] = []
    if stress is None:
        return charts
    clean = stress["clean"]
    metrics = [metric for metric in stress["metrics"] if clean[metric] is not None]  # without classes no accuracy
    for index, (name, found) in enumerate(stress["corruptions"].items()):
        title, severities = name.replace("_", " "), [0, *found["severities"]]
        series = {
            metric: np.array(
                [[clean.get(key), *found[key]] for key in (metric, f"{metric}_low", f"{metric}_high")], float
            )
            for metric in metrics
        }
        chart = figures.stress_curve(f"stress-{index}", title, severities, series)
        charts.append((title, str(found["description"]), chart))
    return charts
