"""Several models on the same cases as one page: figures, curves and overlays side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.statistics import NUM_RESAMPLES
from braintum.evaluation.report import figures
from braintum.evaluation.report.cases import CaseGroup
from braintum.evaluation.report.curves import Curve, micro_average_roc
from braintum.evaluation.report.images import CasePicture, case_picture
from braintum.evaluation.report.page import TEMPLATES, interval_note, template_environment
from braintum.evaluation.report.report import Report
from braintum.evaluation.report.tables import Cell, HtmlTable, figure_cell
from braintum.evaluation.results.comparison import compare, comparison_tables, in_order
from braintum.evaluation.results.tables import number

_MASK_FIGURES = {
    "Dice": "Dice",
    "IoU": "IoU",
    "Jaccard_distance": "Jaccard distance",
    "accuracy": "Pixel accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "HD95": "HD95",
}
_CLASS_FIGURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "macro_auc": "Macro AUC",
}
_CURVES = {
    "val_losses": "validation loss",
    "train_losses": "training loss",
    "ema_fg_dice": "Dice, smoothed",
    "class_macro_f1": "macro-F1",
}


@dataclass(frozen=True)
class Panel:
    """What one model says of a case.

    Attributes:
        model: its name.
        picture: the case under its mask; None where the image is not there.
        dice: as text.
        predicted_class: empty where there is none.
        class_right: None where not known.
    """

    model: str
    picture: CasePicture | None
    dice: str
    predicted_class: str
    class_right: bool | None


def short_names(reports: Sequence[Report]) -> list[str]:
    """Names of models by what they differ in: trainer, plans, configuration."""
    parts = [
        (r.facts.trainer.removeprefix("nnUNetTrainer"), r.facts.plans_name, r.facts.configuration) for r in reports
    ]
    differing = [index for index in range(3) if len({part[index] for part in parts}) > 1]
    return [" ".join(part[index] or "nnU-Net" for index in differing) for part in parts]


def render_comparison(
    reports: Sequence[Report], num_cases: int = 3, command: str = "", num_resamples: int = NUM_RESAMPLES
) -> str:
    """The whole page.

    Args:
        reports: one a model, of the same cases.
        num_cases: of each group of cases that is shown.
        command: the command line that makes this page.
        num_resamples: of the intervals of the differences.

    Raises:
        ValueError: the models were evaluated on different cases, or one of them is named twice.
    """
    comparison = compare([r.table for r in reports], [r.summary for r in reports], num_resamples=num_resamples)
    names = dict(zip(comparison["models"], short_names(reports), strict=True))
    if len(set(names.values())) < len(names):
        raise ValueError(f"models of different data sets cannot be compared: {', '.join(names)}")
    by_name = dict(zip(names.values(), reports, strict=True))
    first = reports[0]
    groups = [
        (group, [_panels(by_name, first.table.cases[row]) for row in group.rows])
        for group in _shown(by_name, num_cases)
    ]
    context = {
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "title": f"{len(reports)} models on {first.facts.dataset_name}",
        "today": date.today().isoformat(),
        "command": command,
        "models": [(name, report.facts) for name, report in by_name.items()],
        "summary": first.summary,
        "interval_note": interval_note(first.summary),
        "best": names.get(comparison["best"], ""),
        "criterion": comparison["criterion"],
        "tests": _tests(comparison, names, len(first.table.cases)),
        "bars": _bars(by_name),
        "masks": _mask_tables(by_name),
        "classes": _class_table(by_name),
        "folds": _fold_table(by_name),
        "curves": _training_charts(by_name),
        "roc": _roc_chart(by_name),
        "groups": groups,
        "has_pictures": any(panel.picture for _, cases in groups for _, panels in cases for panel in panels),
    }
    return template_environment().get_template("comparison.html.j2").render(context)


def _tests(comparison: Mapping[str, Any], names: Mapping[str, str], num_cases: int) -> list[HtmlTable]:
    """Differences between the models, pair by pair."""
    renamed = {
        **comparison,
        "tests": {
            score: [{**pair, "first": names[pair["first"]], "second": names[pair["second"]]} for pair in pairs]
            for score, pairs in comparison["tests"].items()
        },
    }
    return [
        HtmlTable(table.title, table.header, [[Cell(text) for text in row] for row in table.rows], f"tests-{index}")
        for index, table in enumerate(comparison_tables(renamed, num_cases)[1:])
    ]


def _figure_rows(by_name: Mapping[str, Report], path: str, keys: Mapping[str, str], find: Any) -> list[list[Cell]]:
    """A row a model with the figures that ``find`` gives for its summary."""
    rows = []
    for name, report in by_name.items():
        found = find(report.summary)
        if found:
            rows.append([Cell(name), *(figure_cell(f"{name}.{path}.{key}", found.get(key)) for key in keys)])
    return rows


def _mask_tables(by_name: Mapping[str, Report]) -> list[HtmlTable]:
    tables = []
    first = next(iter(by_name.values()))
    keys = {key: f"{title} ({first.table.unit})" if key == "HD95" else title for key, title in _MASK_FIGURES.items()}
    for index, label in enumerate(first.summary["segmentation"]):
        rows = _figure_rows(
            by_name,
            f"masks.{label}",
            keys,
            lambda summary, label=label: summary["segmentation"][label]["figures"].get("all"),
        )
        if rows:
            caption = f"Masks of {label}: means over the cases that show it"
            tables.append(HtmlTable(caption, ["Model", *keys.values()], rows, f"masks-{index}"))
    return tables


def _class_table(by_name: Mapping[str, Report]) -> HtmlTable | None:
    rows = _figure_rows(by_name, "classes", _CLASS_FIGURES, lambda summary: summary.get("classification"))
    if not rows:
        return None
    return HtmlTable("Classes", ["Model", *_CLASS_FIGURES.values()], rows, "classes")


def _fold_table(by_name: Mapping[str, Report]) -> HtmlTable | None:
    """Dice and accuracy of each fold, and their mean ± standard deviation over folds."""
    folds = sorted({fold for report in by_name.values() for fold in report.summary["folds"]["per_fold"]}, key=int)
    rows = []
    for name, report in by_name.items():
        of_model = report.summary["folds"]
        for key, title in (("Dice", "Dice"), ("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            if key not in of_model["mean"]:
                continue
            mean = of_model["mean"][key]
            spread = "" if mean["sd"] is None else f" ± {number(mean['sd'])}"
            cells = [
                Cell(number(of_model["per_fold"].get(fold, {}).get(key)), f"{name}.folds.{fold}.{key}")
                for fold in folds
            ]
            rows.append(
                [Cell(f"{name}, {title}"), *cells, Cell(number(mean["value"]) + spread, f"{name}.folds.mean.{key}")]
            )
    header = ["Model", *(f"fold {fold}" for fold in folds), "mean ± SD over folds"]
    return HtmlTable("Folds, each on the cases that it held out", header, rows, "folds")


def _bars(by_name: Mapping[str, Report]) -> str:
    """The headline figures of all models as bars with intervals."""
    series: dict[str, dict[str, Mapping[str, Any] | None]] = {}
    for name, report in by_name.items():
        whole = report.summary["segmentation"][report.table.whole_tumour]["figures"].get("all", {})
        classes = report.summary.get("classification", {})
        series[name] = {
            "Dice": report.summary["dice"],
            "IoU": whole.get("IoU"),
            "pixel accuracy": whole.get("accuracy"),
            "class accuracy": classes.get("accuracy"),
            "macro-F1": classes.get("macro_f1"),
        }
    return figures.bars_with_intervals("bars", series)


def _training_charts(by_name: Mapping[str, Report]) -> list[tuple[str, str]]:
    charts = []
    for key, label in _CURVES.items():
        curves = {
            name: [log.curves[key] for log in report.facts.logs.values() if key in log.curves]
            for name, report in by_name.items()
        }
        curves = {name: found for name, found in curves.items() if found}
        if curves:
            charts.append((label[:1].upper() + label[1:], figures.curves_of_models(f"curves-{key}", curves, label)))
    return charts


def _roc_chart(by_name: Mapping[str, Report]) -> str | None:
    """Micro-average ROC curve of each model that predicts classes."""
    curves = []
    for name, report in by_name.items():
        table = report.table
        known = table.true_class != UNKNOWN
        if table.probabilities is not None and known.any():
            curve = micro_average_roc(table.true_class[known], table.probabilities[known])
            curves.append(Curve(name, curve.x, curve.y, curve.figure))
    if not curves:
        return None
    title = "Micro-average ROC curves of the models, area under each"
    return figures.class_curves("roc", curves, title, ("false-positive rate", "sensitivity"), True)


def _shown(by_name: Mapping[str, Report], num_cases: int) -> list[CaseGroup]:
    """Cases with a tumour: those on which the models differ most, and the worst, middle and best ones by mean Dice."""
    reports = list(by_name.values())
    dice = np.stack([in_order(r.table, r.table.dice, reports[0].table) for r in reports])  # (models, cases)
    defined = np.flatnonzero(np.isfinite(dice).all(0))
    if not len(defined):
        return []
    spread, mean = np.ptp(dice[:, defined], axis=0), dice[:, defined].mean(0)
    ranked = defined[np.argsort(mean, kind="stable")]
    middle = max(0, (len(ranked) - num_cases) // 2)
    chosen = (
        ("differ", "Where the models differ most", defined[np.argsort(-spread, kind="stable")][:num_cases]),
        ("worst", "Worst", ranked[:num_cases]),
        ("median", "Median", ranked[middle : middle + num_cases]),
        ("best", "Best", ranked[::-1][:num_cases]),
    )
    seen: set[int] = set()
    groups = []
    for key, title, rows in chosen:
        new = [row for row in rows.tolist() if row not in seen]
        seen.update(new)
        if new:
            groups.append(CaseGroup(key, title, "", tuple(new)))
    return groups


def _panels(by_name: Mapping[str, Report], case: str) -> tuple[str, list[Panel]]:
    """A case, and what each model says of it."""
    panels = []
    for name, report in by_name.items():
        table, row = report.table, report.table.cases.index(case)
        files = report.images.get(case)
        has_image = bool(files) and all(Path(file).is_file() for file in files or ())
        true, predicted = table.true_class[row], table.predicted_class[row]
        panels.append(
            Panel(
                name,
                case_picture(table, row, files or ()) if has_image else None,
                number(float(table.dice[row])),
                report.predicted_class_names[row],
                bool(true == predicted) if UNKNOWN not in (true, predicted) else None,
            )
        )
    return case, panels
