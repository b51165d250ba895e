"""Tumours of a data set: how large, how many slices, of which class, of how many patients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.format.cases import Case, ClassSchema
from braintum.planner.fingerprint.intensity_fingerprint import quantiles

UNKNOWN_CLASS = "unknown"


@dataclass(frozen=True)
class TumourStatistics:
    """The label map of one case.

    Attributes:
        voxels_per_value: number of voxels of each label value, from 0 on.
        element_size: size of a voxel, in the unit of :func:`size_unit`.
        slices: number of slices with foreground.
        extent: edges of the foreground's bounding box (z, y, x), in mm or pixels; zeros without foreground. A single
            slice has no z extent: it is 0.
        masked: False where every voxel carries the ignore label: nobody drew a mask.
    """

    voxels_per_value: tuple[int, ...]
    element_size: float
    slices: int
    extent: tuple[float, ...]
    masked: bool

    def size(self, values: Iterable[int]) -> float:
        """Size of the union of some label values, in the unit of :func:`size_unit`."""
        present = [self.voxels_per_value[value] for value in set(values) if value < len(self.voxels_per_value)]
        return sum(present) * self.element_size


def tumour_statistics(segmentation: np.ndarray, spacing: Sequence[float], ignore_label: int | None) -> TumourStatistics:
    """Statistics of one label map.

    Args:
        segmentation: (Z, Y, X), integers from 0 on.
        spacing: (z, y, x); for a single slice the first value means nothing.
        ignore_label: value of the ignore label, if one is declared.
    """
    counts = np.bincount(segmentation.ravel())
    foreground = segmentation > 0
    if ignore_label is not None:
        foreground &= segmentation != ignore_label
    is_slice = segmentation.shape[0] == 1
    occupied = [foreground.any(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    extent = [np.ptp(np.flatnonzero(line)) + 1 if line.any() else 0 for line in occupied]
    if is_slice:
        extent[0] = 0
    return TumourStatistics(
        voxels_per_value=tuple(counts.tolist()),
        element_size=float(np.prod(spacing[1:] if is_slice else spacing)),
        slices=int(occupied[0].sum()),
        extent=tuple(float(edge * size) for edge, size in zip(extent, spacing, strict=True)),
        masked=ignore_label is None or bool((segmentation != ignore_label).any()),
    )


def size_unit(is_2d: bool, has_spacing: bool) -> str:
    """Unit of sizes: mm², mm³, or pixels where the files know no spacing (PNG)."""
    if not has_spacing:
        return "px"
    return "mm²" if is_2d else "mm³"


def label_values(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Label or region -> its values, from ``labels`` of ``dataset.json``; without background and ignore label."""
    return {
        name: tuple(value) if isinstance(value, (list, tuple)) else (int(value),)
        for name, value in labels.items()
        if name != "ignore" and value != 0
    }


def undeclared_values(
    tumours: Mapping[str, TumourStatistics], files: Mapping[str, str], labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Values of label maps that ``dataset.json`` does not declare, on which a training fails.

    Args:
        tumours: case -> statistics of its label map.
        files: case -> its label map.
        labels: of ``dataset.json``.

    Returns:
        ``file``, ``value`` and ``voxels`` (their number) of each.
    """
    declared = {0, labels.get("ignore"), *(value for values in label_values(labels).values() for value in values)}
    return [
        {"file": Path(files[case]).name, "value": value, "voxels": voxels}
        for case, tumour in tumours.items()
        for value, voxels in enumerate(tumour.voxels_per_value)
        if voxels and value not in declared
    ]


def summarise_tumours(
    tumours: Mapping[str, TumourStatistics],
    labels: Mapping[str, Any],
    schema: ClassSchema | None,
    cases: Mapping[str, Case] | None,
) -> dict[str, Any]:
    """Foreground, labels, classes and patients, for the fingerprint.

    Args:
        tumours: case -> statistics of its label map.
        labels: of ``dataset.json``.
        schema: the data set's classes, if it has any.
        cases: rows of ``cases.csv``, if there is one.
    """
    by_label = label_values(labels)
    foreground = {value for values in by_label.values() for value in values}
    with_tumour = {case: tumour for case, tumour in tumours.items() if tumour.slices}
    known = {case: tumour for case, tumour in tumours.items() if tumour.masked}
    summary: dict[str, Any] = {
        "cases": len(tumours),
        "cases_without_mask": len(tumours) - len(known),
        "cases_without_foreground": len(known) - len(with_tumour),
        "share_without_foreground": (len(known) - len(with_tumour)) / len(known) if known else None,
        "foreground": _sizes(with_tumour.values(), foreground),
        "labels": {name: _label_entry(with_tumour.values(), values) for name, values in by_label.items()},
    }
    if cases is not None:
        rows = {case: cases[case] for case in tumours if case in cases}
        summary["patients"] = _patients(rows.values())
    if schema is not None and cases is not None:
        summary["negative_class"] = schema.negative_class
        summary["classes"] = {}
        for name in ("", *schema.class_names):
            members = {case: row for case, row in rows.items() if row.tumour_class == name}
            summary["classes"][name or UNKNOWN_CLASS] = {
                "cases": len(members),
                "cases_with_mask": len(members.keys() & known.keys()),
                "patients": _patients(members.values()),
                "foreground": _sizes((with_tumour[case] for case in members if case in with_tumour), foreground),
            }
    return summary


def _label_entry(tumours: Iterable[TumourStatistics], values: Iterable[int]) -> dict[str, Any]:
    values = tuple(values)
    sizes = [size for tumour in tumours if (size := tumour.size(values)) > 0]
    return {"cases": len(sizes), "size": quantiles(sizes)}


def _patients(rows: Iterable[Case]) -> int:
    return len({row.patient for row in rows} - {""})


def _sizes(tumours: Iterable[TumourStatistics], foreground: Iterable[int]) -> dict[str, Any]:
    tumours, foreground = list(tumours), tuple(foreground)
    extents = np.array([tumour.extent for tumour in tumours]).reshape(-1, 3)
    return {
        "cases": len(tumours),
        "size": quantiles([tumour.size(foreground) for tumour in tumours]),
        "slices": quantiles([tumour.slices for tumour in tumours]),
        "extent": {axis: quantiles(extents[:, index]) for index, axis in enumerate("zyx")},
    }
