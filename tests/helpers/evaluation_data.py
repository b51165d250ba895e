"""Tiny data sets with known predictions, in the folders that commands write."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from braintum.conversion.format.cases import Case, write_cases

CLASS_NAMES = ("meningioma", "glioma", "no_tumor")
SPACING = (0.5, 2.0)  # x, y in mm
SHAPE = (20, 24)  # y, x


def square(top: int, left: int, edge: int, label: int = 1) -> np.ndarray:
    """A label map with one square; an edge of 0 gives an empty one."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[top : top + edge, left : left + edge] = label
    return mask


def dataset_json(labels: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "channel_names": {"0": "T1ce"},
        "labels": labels or {"background": 0, "tumour": 1},
        "numTraining": 6,
        "file_ending": ".nii.gz",
        "classification": {"class_names": list(CLASS_NAMES), "negative_class": "no_tumor"},
        **more,
    }


def write_mask(file: Path, mask: np.ndarray) -> None:
    image = SimpleITK.GetImageFromArray(mask)
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(file))


def class_result(case: str, probabilities: Sequence[float], volume: float = 0.0) -> dict[str, Any]:
    return {
        "case": case,
        "predicted_class": CLASS_NAMES[int(np.argmax(probabilities))],
        "confidence": max(probabilities),
        "probabilities": dict(zip(CLASS_NAMES, probabilities, strict=True)),
        "tumour_volume": volume,
        "volume_unit": "mm2",
    }


# case: (class, patient, true mask, predicted mask, class probabilities)
CASES: dict[str, tuple[str, str, np.ndarray, np.ndarray, Sequence[float]]] = {
    "a1": ("meningioma", "a", square(2, 2, 4), square(2, 2, 4), (0.8, 0.1, 0.1)),  # perfect
    "a2": ("meningioma", "a", square(2, 2, 4), square(2, 4, 4), (0.6, 0.3, 0.1)),  # half of it: Dice 0.5
    "b1": ("glioma", "b", square(5, 5, 6), square(5, 5, 0), (0.2, 0.7, 0.1)),  # missed, class right
    "b2": ("glioma", "b", square(5, 5, 6), square(5, 5, 3), (0.5, 0.4, 0.1)),  # a quarter: Dice 0.4; class wrong
    "h1": ("no_tumor", "c", square(0, 0, 0), square(1, 1, 2), (0.1, 0.2, 0.7)),  # false mask, class healthy
    "h2": ("no_tumor", "d", square(0, 0, 0), square(0, 0, 0), (0.1, 0.2, 0.7)),  # right
}
DICE = {"a1": 1.0, "a2": 0.5, "b1": 0.0, "b2": 2 * 9 / (36 + 9)}


def write_truth(folder: Path, cases: Mapping[str, Any] = CASES, dataset: Mapping[str, Any] | None = None) -> Path:
    """``dataset.json``, ``cases.csv`` and ``labelsTs`` of a data set; returns the folder of the label maps."""
    labels = folder / "labelsTs"
    labels.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset or dataset_json()), encoding="utf-8")
    write_cases(folder / "cases.csv", [Case(name, row[0], patient=row[1], split="test") for name, row in cases.items()])
    for name, row in cases.items():
        write_mask(labels / f"{name}.nii.gz", row[2])
    return labels


def write_predictions(folder: Path, cases: Mapping[str, Any] = CASES, with_classes: bool = True) -> Path:
    """What ``braintum_predict`` writes."""
    (folder / "classes").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json()), encoding="utf-8")
    for name, row in cases.items():
        write_mask(folder / f"{name}.nii.gz", row[3])
        if with_classes:
            result = class_result(name, row[4], float(np.count_nonzero(row[3])))
            (folder / "classes" / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    if not with_classes:
        (folder / "classes").rmdir()
    return folder
