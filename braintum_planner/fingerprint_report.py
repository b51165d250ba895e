"""The page that ``braintum_fingerprint`` prints: what is in a data set, and what was decided because of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from braintum.conversion.files.orientation import ORIENTATIONS_ENTRY
from braintum.planner.fingerprint.tumour_fingerprint import UNKNOWN_CLASS
from braintum.planner.fingerprint_extractors import FINGERPRINT_ENTRY
from braintum.planner.planning.decisions import DECISIONS_ENTRY

_FOLDS = 5
"""nnU-Net splits into five folds."""
_MOST_FILES = 20
"""That are named one by one."""


def render(dataset_name: str, fingerprint: Mapping[str, Any], plans: Mapping[str, Any]) -> str:
    """The whole page as plain text.

    Args:
        dataset_name: of the data set.
        fingerprint: of ``BrainTumFingerprintExtractor``.
        plans: of one of our planners.
    """
    entry = fingerprint[FINGERPRINT_ENTRY]
    sections = {
        dataset_name: _geometry(entry),
        "Intensities": _channels(entry["channels"]),
        "Tumours and classes": _tumours(entry["tumours"], entry["unit"]),
        "Look at": [f"- {warning}" for warning in warnings(entry)] or ["  nothing unusual"],
        f"Decisions of {plans['experiment_planner_used']}, plans {plans['plans_name']}": _decisions(plans),
    }
    lines = []
    for title, body in sections.items():
        lines += [title, "-" * len(title), *body, ""]
    return "\n".join(lines)


def warnings(entry: Mapping[str, Any]) -> list[str]:
    """What a person should know before training, each with what to do.

    Args:
        entry: ``braintum`` of the fingerprint.
    """
    found = []
    tumours = entry["tumours"]
    if tumours["cases"] < _FOLDS:
        found.append(
            f'{tumours["cases"]} cases cannot be split into nnU-Net\'s {_FOLDS} folds: train with fold "all", or give '
            "splits_final.json"
        )
    if not tumours["foreground"]["cases"]:
        found.append("no case has any foreground: a model can learn nothing but an empty mask; check labelsTr")
    undeclared = entry.get("undeclared_values", [])  # fingerprints of earlier versions have none
    for item in undeclared[:_MOST_FILES]:
        found.append(
            f"{item['file']}: {item['voxels']} voxels have the value {item['value']}, which is no label of "
            "dataset.json: training fails on it. Write the label that is meant (1 in place of 255, for instance), or "
            "declare it, and extract the fingerprint again (--clean)"
        )
    if len(undeclared) > _MOST_FILES:
        found.append(f"{len(undeclared) - _MOST_FILES} more values of label maps that are no label of dataset.json")
    for name, label in tumours["labels"].items():
        if tumours["foreground"]["cases"] and not label["cases"]:
            found.append(f"label {name} occurs in no case: remove it from dataset.json, or check the masks")
    for name, members in tumours.get("classes", {}).items():
        if name == UNKNOWN_CLASS:
            continue
        if not members["cases"]:
            found.append(f"class {name} has no case: remove it from class_names, or add cases")
        elif members["patients"] == 1:
            found.append(
                f"class {name} has one patient: no split by patients can both train on it and validate it; add "
                "patients or leave the class out"
            )
        if members.get("cases_with_mask") and not members["foreground"]["cases"] and name != tumours["negative_class"]:
            found.append(
                f'class {name} has empty masks only: if it is the healthy one, name it as "negative_class" under '
                '"classification" in dataset.json (braintum_convert folder --negative-class)'
            )
    if len(orientations := entry.get(ORIENTATIONS_ENTRY, {})) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in orientations.items())
        found.append(
            f"volumes are stored in different orientations ({listed}), and nnU-Net's reader leaves them so: set "
            '"overwrite_image_reader_writer": "SimpleITKIOWithReorient" in dataset.json, and begin again'
        )
    for channel in entry["channels"]:
        if channel["missing_images"]:
            named = ", ".join(channel["missing_in"]) + (
                ", …" if channel["missing_images"] > len(channel["missing_in"]) else ""
            )
            found.append(
                f"channel {channel['name']} is constant (missing sequence) in {channel['missing_images']} of "
                f"{tumours['cases']} cases: {named}"
            )
        if channel["saturated_images"]:
            found.append(
                f"channel {channel['name']}: {channel['saturated_images']} images have more than 1 % of their non-zero "
                f"voxels at their maximum (up to {channel['largest_saturated_share']:.1%}): export with a wider window"
            )
    return found


def _geometry(entry: Mapping[str, Any]) -> list[str]:
    kind = "2-D images" if entry["is_2d"] else "volumes"
    spacing_unit = "px" if entry["unit"] == "px" else "mm"
    axes = "yx" if entry["is_2d"] else "zyx"
    lines = [f"{entry['tumours']['cases']} cases, {kind}, {entry['different_shapes']} different shapes"]
    for axis in axes:
        lines.append(f"  voxels along {axis}: {_range(entry['shape'][axis], '')}")
    if spacing_unit == "px":
        return [*lines, "  spacing unknown: distances are in pixels"]
    for axis in axes:
        lines.append(f"  spacing along {axis}: {_range(entry['spacing'][axis], ' mm')}")
    return [*lines, f"  anisotropy (coarsest by finest axis): {_range(entry['anisotropy'], '')}"]


def _channels(channels: list[dict[str, Any]]) -> Iterator[str]:
    for channel in channels:
        kind = f"whole numbers, {channel['bit_depth']} bits in use" if channel["integer"] else "floats"
        limit = ", the maximum is the type's" if channel["at_type_limit"] else ""
        yield f"{channel['name']}: {kind}, {channel['minimum']:g} to {channel['maximum']:g}{limit}"
        background = "skull-stripped, or air set to zero" if channel["skull_stripped"] else "background is not zero"
        yield (
            f"  {background} ({channel['skull_stripped_share']:.0%} of the images have edges of exact zeros); "
            f"{channel['nonzero_share']:.0%} of the voxels are not zero"
        )
        for region in ("whole_image", "nonzero"):
            values = channel[region]
            if values["mean"] is None:
                yield f"  {region.replace('_', ' ')}: no voxel"
                continue
            percentiles = "  ".join(
                f"{float(name.removeprefix('percentile_').replace('_', '.')):g} %: {value:g}"
                for name, value in values.items()
                if name.startswith("percentile_")
            )
            yield f"  {region.replace('_', ' ')}: mean {values['mean']:.4g}, SD {values['std']:.4g};  {percentiles}"


def _tumours(tumours: Mapping[str, Any], unit: str) -> Iterator[str]:
    if "patients" in tumours:
        yield f"{tumours['patients'] or 'unknown number of'} patients"
    healthy = tumours["share_without_foreground"]
    yield (
        f"{tumours['foreground']['cases']} cases with tumour, {tumours['cases_without_foreground']} healthy"
        + (f" ({healthy:.0%} of those with a mask)" if healthy is not None else "")
        + f", {tumours['cases_without_mask']} without mask"
    )
    yield from _sizes("all", tumours["foreground"], unit)
    for name, label in tumours["labels"].items():
        yield f"label {name}: in {label['cases']} cases" + (
            f", size {_size_range(label['size'], unit)}" if label["size"] else ""
        )
    for name, members in tumours.get("classes", {}).items():
        if members["cases"]:
            yield f"class {name}: {members['cases']} cases, {members['patients'] or 'unknown'} patients"
            yield from _sizes(name, members["foreground"], unit)


def _sizes(name: str, foreground: Mapping[str, Any], unit: str) -> Iterator[str]:
    if not foreground["cases"]:
        return
    edge_unit = "px" if unit == "px" else "mm"
    yield f"  {name}: size {_size_range(foreground['size'], unit)}"
    extents = ", ".join(
        f"{axis} {values['median']:.3g} (up to {values['max']:.3g})"
        for axis, values in foreground["extent"].items()
        if values["max"]
    )
    slices = f"{foreground['slices']['median']:g} slices at the median; " if foreground["slices"]["max"] > 1 else ""
    yield f"  {name}: {slices}median extent in {edge_unit}: {extents}"


def _decisions(plans: Mapping[str, Any]) -> Iterator[str]:
    for group, decisions in plans[DECISIONS_ENTRY].items():
        yield f"{group}:"
        for subject, reason in decisions.items():
            yield f"  {subject}: {reason}"


def _size_range(values: Mapping[str, float], unit: str) -> str:
    if unit == "mm³":
        return _range({name: value / 1000 for name, value in values.items()}, " ml")
    return _range(values, f" {unit}")


def _range(values: Mapping[str, float], unit: str) -> str:
    if values["min"] == values["max"]:
        return f"{values['min']:.4g}{unit}"
    return (
        f"{values['median']:.4g}{unit} at the median, {values['percentile_05']:.4g} to {values['percentile_95']:.4g} "
        f"(5 % to 95 %), {values['min']:.4g} to {values['max']:.4g} in all"
    )
