"""Figures as tables: Markdown for people, LaTeX (with a macro a figure, as paper 001 exports them) for papers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from braintum.evaluation.metrics.statistics import MIN_CLUSTERS

_MASK_COLUMNS = ("Dice", "IoU", "HD95", "ASSD", "precision", "recall", "relative_volume_error", "lesion_recall")
_CLASS_COLUMNS = ("sensitivity", "specificity", "precision", "f1", "auc", "average_precision")
_OVERALL_ROWS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_auc", "macro_average_precision"),
    *("brier_score", "calibration_error", "majority_rate"),
)
_JOINT_ROWS = (
    *("both_correct", "contradictions", "healthy_class_with_mask", "tumour_class_without_mask"),
    *("false_masks", "missed_tumours"),
)
_NAMES = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "auc": "AUC",
    "macro_auc": "macro AUC (one-vs-rest)",
    "majority_rate": "most frequent class alone",
    "brier_score": "Brier score",
    "calibration_error": "ECE (15 bins)",
    "both_correct": "class right and Dice at least 0.5 (healthy: no mask)",
    "contradictions": "mask and class contradict each other",
    "healthy_class_with_mask": "healthy class, but a mask",
    "tumour_class_without_mask": "tumour class, but no mask",
    "false_masks": "healthy cases with a mask",
    "missed_tumours": "tumours without a mask",
}


@dataclass(frozen=True)
class Table:
    """A titled table of text cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self, style: str) -> str:
        """The table in one of tabulate's styles, such as ``simple``, ``github`` or ``latex_booktabs``."""
        alignment = ["left", *["right"] * (len(self.header) - 1)]
        return tabulate(self.rows, self.header, tablefmt=style, disable_numparse=True, colalign=alignment)


def tables_of(summary: Mapping[str, Any]) -> list[Table]:
    """All tables of a summary (see :func:`braintum.evaluation.results.summary.summarise_table`)."""
    unit = summary["length_unit"]
    tables = [_overview(summary)]
    tables += [_mask_table(label, found, unit) for label, found in summary["segmentation"].items() if found["figures"]]
    if "classification" in summary:
        tables += _class_tables(summary["classification"])
    if "folds" in summary:
        tables.append(_fold_table(summary["folds"]))
    if "class_by_region" in summary:
        regions = summary["class_by_region"]
        names = [name for name in next(iter(regions.values())) if name != "num_cases"]
        rows = [[region, *(number(v[name]) for name in names), str(v["num_cases"])] for region, v in regions.items()]
        tables.append(Table("Class by the region that the classifier sees", ["region", *map(_name, names), "n"], rows))
    return tables


def _mask_table(label: str, found: Mapping[str, Any], unit: str) -> Table:
    """Mask metrics over the cases that show a label, all of them and by class."""
    false, counts = found["false_masks"], found["num_cases"]
    rows = [
        [group, *(_with_cases(figures[name], counts[group]) for name in _MASK_COLUMNS), str(counts[group])]
        for group, figures in found["figures"].items()
    ]
    title = f"Segmentation of {label}: the cases that show it"
    if false["num_cases"]:
        title += f" (false masks in {false['count']} of {false['num_cases']} that do not)"
    return Table(title, ["cases", *(_column_name(name, unit) for name in _MASK_COLUMNS), "n"], rows)


def _overview(summary: Mapping[str, Any]) -> Table:
    """Headline figures by case, with intervals over patients, and by patient beside them."""
    patients = summary.get("patients", {})
    rows = []
    for label, found in summary["segmentation"].items():
        if found["figures"]:
            rows.append([f"Dice, {label}", found["figures"]["all"]["Dice"], patients.get("Dice", {}).get(label)])
    if len(summary["segmentation"]) > 1:
        rows.append(["Dice, mean over labels", summary["dice"], None])
    for name in _OVERALL_ROWS:
        by_case = summary.get("classification", {}).get(name)
        rows.append([_name(name), by_case, patients.get("classification", {}).get(name)])
    rows += [[_name(name), summary["joint"][name], None] for name in _JOINT_ROWS]
    counts = summary.get("classification", {}).get("num_cases"), patients.get("classification", {}).get("num_cases")
    cells = []
    for name, by_case, by_patient in rows:
        if by_case is not None and (by_case["value"] is not None or by_case.get("num_cases")):
            row = [name, number(by_case["value"]), interval(by_case), str(by_case.get("num_cases", counts[0]))]
            if patients:
                count = "" if by_patient is None else str(by_patient.get("num_cases", counts[1]))
                row += (
                    ["", "", ""] if by_patient is None else [number(by_patient["value"]), interval(by_patient), count]
                )
            cells.append(row)
    title = f"{summary['name']}: {summary['num_cases']} cases"
    if summary["num_patients"] is not None:
        title += f" of {summary['num_patients']} patients"
    if summary["num_missing"]:
        title += f", {summary['num_missing']} not predicted"
    if summary["failed"]:
        title += f", {len(summary['failed'])} left out as faulty"
    units = "independent patients" if summary["num_patients"] is not None else "cases, as patients are not known"
    if summary["num_clusters"] < MIN_CLUSTERS:
        title += f" (no intervals: {summary['num_clusters']} {units}, {MIN_CLUSTERS} are needed)"
    else:
        title += f" (95 % intervals: bootstrap over {summary['num_clusters']} {units})"
    header = ["figure", "by case", "95 % interval", "n"]
    return Table(title, header + (["by patient", "95 % interval", "n"] if patients else []), cells)


def headline_table(summary: Mapping[str, Any], title: str) -> Table:
    """The few figures to look at first, by case, with intervals; what is undefined stays a dash.

    Args:
        summary: see :func:`braintum.evaluation.results.summary.summarise_table`.
        title: of the table.
    """
    rows: list[tuple[str, Mapping[str, Any], int]] = []
    for label, found in summary["segmentation"].items():
        figures = found["figures"].get("all", {})
        rows += [
            (f"{_column_name(name, summary['length_unit'])}, {label}", figures[name], figures[name]["num_cases"])
            for name in ("Dice", "HD95")
            if name in figures
        ]
    if "classification" in summary:
        classes = summary["classification"]
        rows += [(_name(name), classes[name], classes["num_cases"]) for name in ("accuracy", "macro_f1")]
    false_masks = summary["joint"]["false_masks"]
    rows.append((_name("false_masks"), false_masks, false_masks["num_cases"]))
    cells = [[name, number(values["value"]), interval(values), str(count)] for name, values, count in rows]
    return Table(title, ["figure", "value", "95 % interval", "n"], cells)


def _class_tables(classification: Mapping[str, Any]) -> list[Table]:
    per_class, names = classification["per_class"], list(classification["per_class"])
    columns = [name for name in _CLASS_COLUMNS if name in next(iter(per_class.values()))]
    rows = [
        [name, *(_with_interval(per_class[name][column]) for column in columns), str(per_class[name]["num_cases"])]
        for name in names
    ]
    title = f"Classes ({classification['num_cases']} cases"
    for key, text in (("num_unknown", "of unknown class"), ("num_withheld", "withheld")):
        if classification.get(key):
            title += f", {classification[key]} {text}"
    matrix = [[name, *map(str, counts)] for name, counts in zip(names, classification["confusion_matrix"], strict=True)]
    return [
        Table(title + ")", ["class", *map(_name, columns), "n"], rows),
        Table(
            "Confusion matrix: true class in rows, predicted class in columns", ["true \\ predicted", *names], matrix
        ),
    ]


def _fold_table(folds: Mapping[str, Any]) -> Table:
    names = list(folds["mean"])
    rows = [
        [f"fold {fold}", *(number(values[name]) for name in names), str(values["num_cases"])]
        for fold, values in folds["per_fold"].items()
    ]
    mean = folds["mean"]
    rows.append(["mean ± SD", *(f"{number(mean[n]['value'])} ± {number(mean[n]['sd'])}" for n in names), ""])
    return Table("Folds", ["", *map(_name, names), "n"], rows)


def number(value: float | None) -> str:
    """A figure with three decimals; a dash where it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def interval(values: Mapping[str, Any]) -> str:
    """``[low, high]``; a dash where there is none."""
    return "–" if values["low"] is None else f"[{values['low']:.3f}, {values['high']:.3f}]"


def _with_interval(values: Mapping[str, Any]) -> str:
    return number(values["value"]) + ("" if values["low"] is None else f" {interval(values)}")


def _with_cases(values: Mapping[str, Any], num_cases: int) -> str:
    """A mean, and over how many cases where it is undefined for some."""
    return number(values["value"]) + ("" if values["num_cases"] == num_cases else f" (n={values['num_cases']})")


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))


def _column_name(metric: str, unit: str) -> str:
    return f"{_name(metric)} ({unit})" if metric in ("HD", "HD95", "ASSD") else _name(metric)


def latex_macros(summary: Mapping[str, Any], prefix: str = "Braintum") -> str:
    r"""One ``\newcommand`` a figure, so that a paper's text cites what was computed: ``\BraintumAccuracy``.

    Every figure with a ``value`` gets a macro of its path in the summary, and its bounds ``…Low`` and ``…High``.
    LaTeX allows letters only: digits are spelt out.
    """
    lines = []

    def walk(values: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if "value" in values:
            for key, ending in (("value", ""), ("low", "Low"), ("high", "High"), ("sd", "Sd")):
                if values.get(key) is not None:
                    lines.append(f"\\newcommand{{\\{_macro_name((prefix, *path))}{ending}}}{{{values[key]:.3f}}}")
            return
        for name, value in values.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))

    walk(summary, ())
    return "\n".join(lines) + "\n"


_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def _macro_name(path: Sequence[str]) -> str:
    words = [word for part in path for word in re.findall(r"[A-Za-z]+|[0-9]", part)]
    return "".join(_DIGITS[int(word)] if word.isdigit() else word[:1].upper() + word[1:] for word in words)
