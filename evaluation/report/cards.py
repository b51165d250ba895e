"""Cases as a report shows them: picture, class probabilities, figures, and a link to the mask."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.report.images import CasePicture, case_picture, embedded_picture
from braintum.evaluation.report.report import Report
from braintum.evaluation.results.tables import number


@dataclass(frozen=True)
class Bar:
    """Probability of a class, as a bar."""

    name: str
    probability: float
    is_true: bool
    is_predicted: bool


@dataclass(frozen=True)
class CaseCard:
    """A case as the page shows it.

    Attributes:
        key: for links.
        case: name.
        fold: that held it out.
        true_class: name; empty where unknown.
        predicted_class: name; empty where withheld or not predicted.
        class_right: None where it cannot be told.
        dice: as text.
        true_size: as text, with its unit.
        predicted_size: as text, with its unit.
        bars: class probabilities, in the order of the classes.
        picture: None where the image is not there.
        explanation: data URI, width and height of the explanation's overlay.
        explanation_text: what is known of it.
        mask_link: predicted mask, relative to the report; empty where there is no relative way.
    """

    key: str
    case: str
    fold: int | None
    true_class: str
    predicted_class: str
    class_right: bool | None
    dice: str
    true_size: str
    predicted_size: str
    bars: Sequence[Bar]
    picture: CasePicture | None
    explanation: tuple[str, int, int] | None
    explanation_text: str
    mask_link: str


def case_card(report: Report, row: int, output: Path) -> CaseCard:
    """A case of the report, with its picture where the image is there.

    Args:
        report: what was gathered.
        row: of the case table.
        output: where the page will be.
    """
    table, unit = report.table, report.size_unit
    case = table.cases[row]
    files = report.images.get(case)
    picture, overlay = None, None
    if files and all(Path(file).is_file() for file in files):
        picture = case_picture(table, row, files, report.map_file(case))
    if report.explanations is not None and (picture is None or not picture.explanation):
        overlay = report.explanations.overlay(case)
    true, predicted = table.true_class[row], table.predicted_class[row]
    probabilities = [] if table.probabilities is None else table.probabilities[row].tolist()
    return CaseCard(
        f"case-{row}",
        case,
        table.predictions.fold_of_case.get(case),
        report.true_class_names[row],
        report.predicted_class_names[row],
        bool(true == predicted) if UNKNOWN not in (true, predicted) else None,
        _text(table.dice[row]),
        _size(table.true_volume[row], unit),
        _size(table.predicted_volume[row], unit),
        [
            Bar(name, probability, index == true, index == predicted)
            for index, (name, probability) in enumerate(zip(report.class_names, probabilities, strict=False))
        ],
        picture,
        None if overlay is None else embedded_picture(overlay),
        _explanation_text(report, case),
        _link(table.predictions.masks[case], output),
    )


def _text(value: float) -> str:
    return number(float(value) if np.isfinite(value) else None)


def _size(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return "unknown"
    return f"{value / 1000:,.1f} ml" if unit == "mm³" else f"{value:,.0f} {unit}"


def _link(file: Path, output: Path) -> str:
    """Address of a file relative to the report; empty where there is none, as between two drives."""
    try:
        relative = os.path.relpath(file.resolve(), output.resolve().parent)
    except ValueError:
        return ""
    return quote(Path(relative).as_posix())


def failure_row(report: Report, row: int, output: Path) -> dict[str, Any]:
    """A case in a table of failures; arguments as of :func:`case_card`."""
    table = report.table
    case = table.cases[row]
    return {
        "row": row,
        "case": case,
        "fold": table.predictions.fold_of_case.get(case, ""),
        "true_class": report.true_class_names[row],
        "predicted_class": report.predicted_class_names[row],
        "confidence": None if table.probabilities is None else float(table.probabilities[row].max()),
        "dice": _text(table.dice[row]),
        "mask_link": _link(table.predictions.masks[case], output),
    }


_METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "integrated_gradients": "Integrated gradients"}


def _explanation_text(report: Report, case: str) -> str:
    entry = {} if report.explanations is None else report.explanations.entries.get(case, {})
    if not entry:
        return ""
    text = f"{_METHODS.get(str(entry['method']), str(entry['method']))} of {entry['class']}"
    for mask, name in (("true_mask", "true"), ("predicted_mask", "predicted")):
        if entry.get(f"{mask}_share") is not None:
            share, area = entry[f"{mask}_share"], entry[f"{mask}_area"]
            return f"{text}: {share:.0%} of it inside the {name} mask, which covers {area:.1%} of the image"
    return text


def explanation_rows(report: Report) -> list[tuple[str, str, str]]:
    """Title, name and text of the figures over all explained cases; empty without explanations."""
    if report.explanations is None:
        return []
    entries = list(report.explanations.entries.values())
    rows = [("Explained cases", "count", str(len(entries)))]
    for key, title in (
        ("true_mask_share", "Share of the map inside the true mask"),
        ("true_mask_area", "Share of the image that the true mask covers"),
        ("predicted_mask_share", "Share of the map inside the predicted mask"),
        ("predicted_mask_area", "Share of the image that the predicted mask covers"),
        ("spearman_random_head", "Correlation with the map of a network with a random head"),
        ("spearman_random_network", "Correlation with the map of a random network"),
    ):
        values = [entry[key] for entry in entries if entry.get(key) is not None]
        if values:
            rows.append((f"{title}, mean", key, number(float(np.mean(values)))))
    return rows
