"""The tables of a report, as cells that carry the name of their figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from braintum.evaluation.calibration.model_trust import trust_rows
from braintum.evaluation.report.curves import SizeGroup
from braintum.evaluation.results.tables import number

_MASK_COLUMNS = {
    "Dice": "Dice",
    "IoU": "IoU",
    "Jaccard_distance": "Jaccard distance",
    "accuracy": "Pixel accuracy",
    "HD95": "HD95",
    "ASSD": "ASSD",
    "precision": "Precision",
    "recall": "Recall",
    "relative_volume_error": "Volume error",
    "lesion_recall": "Lesion recall",
}
_LENGTHS = ("HD95", "ASSD")
_CLASS_COLUMNS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "Average precision",
}
_OVERALL = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "macro_auc": "Macro AUC",
    "macro_average_precision": "Macro average precision",
    "brier_score": "Brier score",
    "calibration_error": "Calibration error (ECE)",
    "majority_rate": "Most frequent class alone",
}
_JOINT = {
    "both_correct": "Class right and Dice ≥ 0.5",
    "contradictions": "Mask and class contradict",
    "false_masks": "Healthy cases with a mask",
    "missed_tumours": "Tumours without a mask",
}
_HEADLINE = ("accuracy", "macro_f1", "macro_auc", "both_correct", "missed_tumours", "false_masks")
_WORSE_WHEN_HIGH = {"missed_tumours", "false_masks", "contradictions"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: shown.
        figure: name of the figure that the text is; empty for a text that is none.
        low: bound of its interval, as text; empty without one.
        high: upper bound.
        share: 0 to 1, how strongly the cell is shaded; None not at all.
        link: where it leads; empty nowhere.
    """

    text: str
    figure: str = ""
    low: str = ""
    high: str = ""
    share: float | None = None
    link: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table whose first column heads its rows.

    Attributes:
        caption: what it shows.
        header: of the columns.
        rows: of cells.
        key: for links and tests.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    key: str


@dataclass(frozen=True)
class Headline:
    """One of the figures on top.

    Attributes:
        name: what it is.
        cell: figure and interval.
        value: 0 to 1, for the bar; None where undefined.
        low: of the interval, for the bar; None without one.
        high: of the interval.
        note: over how many cases.
        is_bad: the lower the better.
    """

    name: str
    cell: Cell
    value: float | None
    low: float | None
    high: float | None
    note: str
    is_bad: bool = False


def figure_cell(name: str, values: Mapping[str, Any] | None) -> Cell:
    """A figure with its interval (:func:`braintum.evaluation.results.summary.figure`); a dash where it is undefined."""
    if values is None or values["value"] is None:
        return Cell("–")
    if values.get("low") is None:
        return Cell(number(values["value"]), name)
    return Cell(number(values["value"]), name, number(values["low"]), number(values["high"]))


def headlines(summary: Mapping[str, Any]) -> list[Headline]:
    """The figures on top of the page: what a reader asks first."""
    found = [_headline("Dice", "dice", summary["dice"], "tumour cases")]
    for name in _HEADLINE:
        values = summary.get("classification", {}).get(name) if name in _OVERALL else summary["joint"].get(name)
        if values is None or values["value"] is None:
            continue
        cases = values.get("num_cases", summary.get("classification", {}).get("num_cases"))
        note = f"{values['count']} of {cases} cases" if "count" in values else f"{cases} cases"
        prefix = "classification" if name in _OVERALL else "joint"
        entry = _headline({**_OVERALL, **_JOINT}[name], f"{prefix}.{name}", values, note)
        found.append(Headline(**{**vars(entry), "is_bad": name in _WORSE_WHEN_HIGH}))
    return found


def _headline(name: str, figure: str, values: Mapping[str, Any], note: str) -> Headline:
    if note == "tumour cases":
        note = f"mean of {values['num_cases']} {note}"
    return Headline(name, figure_cell(figure, values), values["value"], values["low"], values["high"], note)


def overview_table(summary: Mapping[str, Any]) -> HtmlTable:
    """All overall figures, by case and, where patients have several cases, by patient."""
    patients = summary.get("patients", {})
    rows: list[tuple[str, str, Mapping[str, Any] | None, str, Mapping[str, Any] | None]] = []
    for label, found in summary["segmentation"].items():
        if found["figures"]:
            figures = found["figures"]["all"]["Dice"]
            by_patient = patients.get("Dice", {}).get(label)
            path = f"segmentation.{label}.all.Dice"
            rows.append((f"Dice, {label}", path, figures, f"patients.Dice.{label}", by_patient))
    for name, title in _OVERALL.items():
        by_case = summary.get("classification", {}).get(name)
        by_patient = patients.get("classification", {}).get(name)
        rows.append((title, f"classification.{name}", by_case, f"patients.classification.{name}", by_patient))
    rows += [(title, f"joint.{name}", summary["joint"][name], "", None) for name, title in _JOINT.items()]
    counts = summary.get("classification", {}).get("num_cases"), patients.get("classification", {}).get("num_cases")
    cells = []
    for title, path, by_case, patient_path, by_patient in rows:
        if by_case is None or by_case["value"] is None:
            continue
        row = [Cell(title), figure_cell(path, by_case), Cell(str(by_case.get("num_cases", counts[0])))]
        if patients:
            row += [figure_cell(patient_path, by_patient), _count(by_patient, counts[1])]
        cells.append(row)
    header = ["Figure", "By case", "n", *(["By patient", "n"] if patients else [])]
    return HtmlTable("All overall figures", header, cells, "overview")


def _count(values: Mapping[str, Any] | None, default: int | None) -> Cell:
    return Cell("–") if values is None or values["value"] is None else Cell(str(values.get("num_cases", default)))


def mask_tables(summary: Mapping[str, Any], class_names: Sequence[str]) -> list[HtmlTable]:
    """One table a label: mask metrics over the cases that show it, all of them and by class."""
    unit = summary["length_unit"]
    tables: list[HtmlTable] = []
    for label, found in summary["segmentation"].items():
        groups = [name for name in ("all", *class_names) if name in found["figures"]]
        rows = [
            [
                Cell("all cases" if name == "all" else name),
                *(_mean(f"segmentation.{label}.{name}.{key}", found["figures"][name][key]) for key in _MASK_COLUMNS),
                Cell(str(found["num_cases"][name])),
            ]
            for name in groups
        ]
        header = [f"{title} ({unit})" if key in _LENGTHS else title for key, title in _MASK_COLUMNS.items()]
        caption = f"Masks of {label}: means over the cases that show it"
        if found["false_masks"]["num_cases"]:
            false = found["false_masks"]
            caption += f" (marked in {false['count']} of {false['num_cases']} cases that do not)"
        if rows:
            tables.append(HtmlTable(caption, ["Cases", *header, "n"], rows, f"masks-{len(tables)}"))
    return tables


def _mean(name: str, values: Mapping[str, Any]) -> Cell:
    """A mean; intervals of Dice only, to keep the table readable."""
    if name.endswith(".Dice"):
        return figure_cell(name, values)
    return Cell("–") if values["value"] is None else Cell(number(values["value"]), name)


def class_table(classification: Mapping[str, Any], class_names: Sequence[str]) -> HtmlTable:
    """Figures of each class against the rest."""
    per_class = classification["per_class"]
    columns = {key: title for key, title in _CLASS_COLUMNS.items() if key in per_class[class_names[0]]}
    rows = [
        [
            Cell(name),
            *(figure_cell(f"classification.per_class.{name}.{key}", per_class[name][key]) for key in columns),
            Cell(str(per_class[name]["num_cases"])),
        ]
        for name in class_names
    ]
    return HtmlTable("Each class against the rest", ["Class", *columns.values(), "n"], rows, "classes")


def confusion_table(classification: Mapping[str, Any], class_names: Sequence[str]) -> HtmlTable:
    """The confusion matrix, shaded by the share of the true class."""
    rows = []
    for index, (name, counts) in enumerate(zip(class_names, classification["confusion_matrix"], strict=True)):
        total = max(1, sum(counts))
        cells = [
            Cell(str(count), f"confusion.{index}.{column}", share=count / total) for column, count in enumerate(counts)
        ]
        rows.append([Cell(name), *cells])
    caption = "Confusion matrix: true class in rows, predicted class in columns"
    return HtmlTable(caption, ["True ↓ predicted →", *class_names], rows, "confusion")


def fold_table(folds: Mapping[str, Any]) -> HtmlTable:
    """Headline figures of each fold, and mean and standard deviation over folds."""
    titles = {"Dice": "Dice", **_OVERALL}
    names = [name for name in titles if name in folds["mean"]]
    rows = [
        [
            Cell(f"fold {fold}"),
            *(Cell(number(values[name]), f"folds.{fold}.{name}") for name in names),
            Cell(str(values["num_cases"])),
        ]
        for fold, values in sorted(folds["per_fold"].items(), key=lambda item: int(item[0]))
    ]
    for key, title in (("value", "mean"), ("sd", "standard deviation")):
        cells = [Cell(number(folds["mean"][name][key]), f"folds.{key}.{name}") for name in names]
        if len(rows) > 1 and any(cell.text != "–" for cell in cells):
            rows.append([Cell(title), *cells, Cell("")])
    return HtmlTable("Folds, each on the cases that it held out", ["", *(titles[n] for n in names), "n"], rows, "folds")


def size_table(groups: Sequence[SizeGroup], unit: str) -> HtmlTable:
    """Dice of groups of tumour sizes."""
    rows = []
    for index, group in enumerate(groups):
        interval = group.dice.interval
        low, high = ("", "") if interval is None else map(number, interval)
        rows.append(
            [
                Cell(f"{group.low:,.0f} to {group.high:,.0f}"),
                Cell(number(group.dice.value), f"size.{index}.Dice", low, high),
                Cell(number(group.median), f"size.{index}.median"),
                Cell(str(group.count)),
            ]
        )
    return HtmlTable("Dice by tumour size", [f"True size ({unit})", "Mean Dice", "Median", "n"], rows, "sizes")


def reliability_table(bins: Sequence[Mapping[str, float]]) -> HtmlTable:
    """The bins of the reliability diagram, see :func:`braintum.evaluation.calibration.reliability.reliability`."""
    rows = [
        [
            Cell(number(entry["confidence"]), f"reliability.{index}.confidence"),
            Cell(number(entry["accuracy"]), f"reliability.{index}.accuracy"),
            Cell(str(entry["count"]), f"reliability.{index}.count"),
        ]
        for index, entry in enumerate(bins)
    ]
    return HtmlTable("Reliability: the bins", ["Mean confidence", "Accuracy", "n"], rows, "reliability")


def calibration_table(calibration: Mapping[str, Any]) -> HtmlTable:
    """Calibration figures before and after the temperature."""
    titles = {"ece": "Calibration error (ECE)", "nll": "Negative log-likelihood", "brier": "Brier score"}

    def cell(when: str, key: str) -> Cell:
        low, high = (calibration[when].get(f"{key}_{end}") for end in ("low", "high"))
        values = {"value": calibration[when].get(key), "low": low, "high": high}
        return figure_cell(f"calibration.{when}.{key}", values)

    rows = [[Cell(title), *(cell(when, key) for when in ("before", "after"))] for key, title in titles.items()]
    return HtmlTable("Before and after calibration", ["Figure", "Before", "After"], rows, "calibration")


def trust_table(trust: Mapping[str, Any]) -> HtmlTable:
    """What is promised, and how folds kept it that had no say in it."""
    rows = [[Cell(title[0].upper() + title[1:]), Cell(text)] for title, text in trust_rows(trust)]
    return HtmlTable("What is promised of a prediction", ["Promise", "Kept by held-out folds"], rows, "trust")


def stress_table(stress: Mapping[str, Any]) -> HtmlTable:
    """Metrics of every corruption at every severity."""
    corruptions = stress["corruptions"]
    severities = next(iter(corruptions.values()), {"severities": ()})["severities"]
    rows = []
    for metric in stress["metrics"]:
        clean = stress["clean"][metric]
        if clean is None:  # a model without classes
            continue
        for name, found in corruptions.items():
            values = [Cell(_number(v), f"stress.{name}.{metric}.{i}") for i, v in enumerate(found[metric])]
            row = Cell(f"{name.replace('_', ' ')}, {metric}")
            rows.append([row, Cell(number(clean), f"stress.clean.{metric}"), *values])
    return HtmlTable("Figures under corruption", ["", "clean", *map(str, severities)], rows, "stress")


def audit_table(audit: Mapping[str, Any]) -> HtmlTable:
    """What crosses each split of the data set."""
    kinds = {"case": "Images", "duplicates": "Duplicate groups", "patient": "Patients", "group": "Declared groups"}
    rows = [
        [
            Cell(str(split["name"])),
            *(Cell(str(sum(found["what"] == kind for found in split["crossings"]))) for kind in kinds),
            Cell(f"{split['largest_difference_percentage_points']:.1f}"),
        ]
        for split in audit["splits"]
    ]
    header = ["Split", *kinds.values(), "Class balance ± (points)"]
    return HtmlTable("What is on several sides of a split", header, rows, "audit")


def _number(value: float | None) -> str:
    return number(None if value is None else float(value))
