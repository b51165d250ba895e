"""Labels and regions of a data set by name, those included that `dataset.json` does not spell out."""

from collections.abc import Mapping
from typing import Any, TypeAlias

LabelOrRegion: TypeAlias = int | tuple[int, ...]

ANY_LABEL = "any_label"
"""The union of all labels."""

BRATS_LABELS = {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 3}
BRATS_REGIONS: dict[str, Any] = {
    "background": 0,
    "whole_tumour": [1, 2, 3],
    "tumour_core": [1, 3],
    "enhancing_tumour": [3],
}


def named_labels(dataset_json: Mapping[str, Any]) -> dict[str, LabelOrRegion]:
    """Returns what a segmentation consists of: name -> label or region.

    The foreground labels (or regions) of ``dataset.json``; BraTS's whole tumour and tumour core as well where the
    labels are BraTS's; and :data:`ANY_LABEL`, all of them together, where none of these is that.
    """
    declared = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    has_regions = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in declared.values())
    labels: dict[str, LabelOrRegion] = {}
    for name, value in declared.items():
        values = tuple(int(label) for label in value) if isinstance(value, (list, tuple)) else (int(value),)
        if set(values) != {0}:  # with regions, nnU-Net's key of [3] is (3,) and that of 3 is 3
            labels[name] = values if has_regions and isinstance(value, (list, tuple)) else values[0]
    if all(labels.get(name) == value for name, value in BRATS_LABELS.items() if value != 0):
        labels |= {name: tuple(region) for name, region in BRATS_REGIONS.items() if name not in BRATS_LABELS}
    if whole_tumour(labels) is None:
        labels[ANY_LABEL] = tuple(sorted(_all_labels(labels)))
    return labels


def whole_tumour(labels: Mapping[str, LabelOrRegion]) -> str | None:
    """Name of the label or region that all others are parts of."""
    everything = _all_labels(labels)
    return next((name for name, value in labels.items() if _all_labels({name: value}) == everything), None)


def _all_labels(labels: Mapping[str, LabelOrRegion]) -> set[int]:
    return {label for value in labels.values() for label in (value if isinstance(value, tuple) else (value,))}
