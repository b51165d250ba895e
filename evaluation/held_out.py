"""Predictions of held-out cases against the truth: Dice and class, in one table."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from dataset_conversion.cases import Case, ClassSchema
from evaluation.classification_metrics import classification_metrics


@dataclass(frozen=True)
class HeldOutResult:
    """Figures of held-out cases.

    Attributes:
        schema: class names.
        dice: mean Dice over the foreground labels (or regions) of each case; NaN where neither truth nor prediction
            has any.
        true_class: of each case with a known class.
        classification: as of :func:`evaluation.classification_metrics.classification_metrics`.
    """

    schema: ClassSchema
    dice: Mapping[str, float]
    true_class: Mapping[str, str]
    classification: Mapping[str, Any]

    @property
    def mean_dice(self) -> float:
        """Mean over the cases whose Dice is defined."""
        return float(np.nanmean(list(self.dice.values())))


def evaluate_held_out(
    prediction_folder: Path,
    reference_folder: Path,
    cases: Mapping[str, Case],
    dataset_json: dict,
    reader_writer: BaseReaderWriter,
) -> HeldOutResult:
    """Evaluate what ``braintum_predict`` wrote; Dice is nnU-Net's own.

    Args:
        prediction_folder: with ``classes.csv`` and a segmentation of each case in it.
        reference_folder: true segmentations, named alike.
        cases: rows of ``cases.csv``; those that were predicted need one.
        dataset_json: of the data set.
        reader_writer: nnU-Net's, for the segmentation files.

    Raises:
        FileNotFoundError: no ``classes.csv``.
        ValueError: a predicted case that is not in ``cases``.
    """
    classes_file = prediction_folder / "classes.csv"
    if not classes_file.is_file():
        raise FileNotFoundError(f"{classes_file} is missing: {prediction_folder} was not written by braintum_predict")
    with open(classes_file, newline="", encoding="utf-8") as stream:
        predicted_class = {row["case"]: row["predicted_class"] for row in csv.DictReader(stream)}
    if unknown := sorted(set(predicted_class) - set(cases)):
        raise ValueError(f"{classes_file}: {', '.join(unknown[:5])} not in cases.csv, so there is no truth to compare")
    schema = ClassSchema.from_dataset_json(dataset_json)
    if schema is None:
        raise ValueError("dataset.json declares no classes")
    labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    dice = {}
    for case in predicted_class:
        name = f"{case}{dataset_json['file_ending']}"
        metrics = compute_metrics(
            str(reference_folder / name),
            str(prediction_folder / name),
            reader_writer,
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
        )["metrics"]
        values = [label["Dice"] for label in metrics.values()]
        dice[case] = float("nan") if np.isnan(values).all() else float(np.nanmean(values))
    known = [case for case in predicted_class if cases[case].tumour_class]
    return HeldOutResult(
        schema,
        dice,
        {case: cases[case].tumour_class for case in known},
        classification_metrics(
            [schema.index(cases[case].tumour_class) for case in known],
            [schema.index(predicted_class[case]) for case in known],
            schema.class_names,
        ),
    )


def format_table(result: HeldOutResult) -> str:
    """The figures as text: a row a class, the confusion matrix beside it, and the overall figures below."""
    names = result.schema.class_names
    metrics = result.classification
    rows: list[list[str]] = [["class", "cases", "Dice", "sensitivity", "precision", "F1", *(f"→ {n}" for n in names)]]
    for name, confusion in zip(names, metrics["confusion_matrix"], strict=True):
        dice = [result.dice[case] for case, true in result.true_class.items() if true == name]
        figures = metrics["per_class"][name]
        rows.append(
            [
                name,
                str(figures["num_cases"]),
                _figure(float(np.nanmean(dice)) if np.isfinite(dice).any() else None),
                *(_figure(figures[key]) for key in ("sensitivity", "precision", "f1")),
                *(str(count) for count in confusion),
            ]
        )
    overall = (
        f"all: {len(result.dice)} cases, Dice {_figure(result.mean_dice)}, accuracy {_figure(metrics['accuracy'])} "
        f"(the most frequent class alone: {_figure(metrics['majority_rate'])}), balanced accuracy "
        f"{_figure(metrics['balanced_accuracy'])}, macro-F1 {_figure(metrics['macro_f1'])}"
    )
    return f"{_aligned(rows)}\n{overall}"


def _figure(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
