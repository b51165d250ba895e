"""What a stress test writes: ``stress.json``, ``stress.csv``, ``stress.md``, ``stress_cases.csv`` and the curves."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.commands.provenance import provenance
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.evaluation.metrics.statistics import CONFIDENCE, Estimate
from braintum.evaluation.results.summary import figure
from braintum.evaluation.results.tables import Table, number
from braintum.evaluation.stress.corruptions import CORRUPTIONS, SEVERITIES
from braintum.evaluation.stress.stress import METRICS, StressResult
from braintum.evaluation.stress.stress_images import CLEAN, Condition

STRESS_FILE, CURVES_FILE = "stress.json", "stress.png"
COLOURS = {"Dice": "#0072b2", "accuracy": "#d55e00"}  # told apart with any colour vision (Okabe & Ito)


def write_stress_results(result: StressResult, folder: Path) -> list[Table]:
    """Write everything into a folder, and return the tables.

    Args:
        result: of :func:`braintum.evaluation.stress.stress.run_stress_test`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = to_json(result)
    tables = stress_tables(content)
    result.table.write_csv(folder / "stress_cases.csv")
    _write_csv(result, folder / "stress.csv")
    with atomic_path(folder / "stress.md") as partial:
        text = "\n".join(f"## {table.title}\n\n{table.text('github')}\n" for table in tables)
        partial.write_text(text + "\n" + _legend(content), encoding="utf-8")
    plot_curves(content, folder / CURVES_FILE)
    write_json_atomic(folder / STRESS_FILE, content)
    return tables


def to_json(result: StressResult) -> dict[str, Any]:
    """Content of ``stress.json``; None stands for undefined."""
    test = result.test
    corruptions = {}
    for name in test.corruptions:
        entry: dict[str, Any] = {
            "description": CORRUPTIONS[name].description,
            "parameters": list(CORRUPTIONS[name].strengths),
            "severities": list(SEVERITIES),
        }
        for metric in METRICS:
            found = [_figure(result, Condition(name, severity), metric) for severity in SEVERITIES]
            entry[metric] = [values["value"] for values in found]
            entry[f"{metric}_low"] = [values["low"] for values in found]
            entry[f"{metric}_high"] = [values["high"] for values in found]
        corruptions[name] = entry
    clean = {metric: _figure(result, Condition(CLEAN, 0), metric) for metric in METRICS}
    return {
        "model": test.name,
        "num_cases": len(result.table.cases) // len(test.conditions),
        "num_patients": len(set(result.table.patients)) if result.table.knows_patients else None,
        "confidence": CONFIDENCE,
        "provenance": provenance(),
        "metrics": list(METRICS),
        "clean": {
            **{metric: values["value"] for metric, values in clean.items()},
            **{f"{metric}_{end}": values[end] for metric, values in clean.items() for end in ("low", "high")},
        },
        "corruptions": corruptions,
    }


def stress_tables(content: Mapping[str, Any]) -> list[Table]:
    """A table a metric: faults in rows, severities in columns."""
    tables = []
    for metric in content["metrics"]:
        clean = content["clean"][metric]
        if clean is None:
            continue
        rows = [[name, number(clean), *map(number, entry[metric])] for name, entry in content["corruptions"].items()]
        title = f"{metric} of {content['model']} on {content['num_cases']} cases by severity of a fault"
        tables.append(Table(title, ["fault", "none", *map(str, SEVERITIES)], rows))
    return tables


def plot_curves(content: Mapping[str, Any], file: Path) -> None:
    """Metric against severity, a panel a fault, with bands for the 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    corruptions = content["corruptions"]
    columns = min(4, len(corruptions))
    rows = -(-len(corruptions) // columns)
    drawing = Figure(figsize=(3.1 * columns, 2.6 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, (name, entry) in zip(panels.flat, corruptions.items(), strict=False):
        for metric in content["metrics"]:
            clean = content["clean"][metric]
            if clean is None:
                continue
            values = [_or_nan(value) for value in (clean, *entry[metric])]
            severities = [0, *entry["severities"]]
            panel.plot(severities, values, marker="o", markersize=3.5, color=COLOURS[metric], label=metric)
            bounds = [
                [_or_nan(value) for value in (content["clean"][f"{metric}_{end}"], *entry[f"{metric}_{end}"])]
                for end in ("low", "high")
            ]
            panel.fill_between(severities, *bounds, color=COLOURS[metric], alpha=0.15, linewidth=0)
            panel.axhline(clean, color=COLOURS[metric], linewidth=0.6, linestyle=":")
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels.flat[len(corruptions) :]:
        panel.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    drawing.supxlabel("severity (0: as it is)", fontsize=10)
    with atomic_path(file) as partial:
        drawing.savefig(partial, dpi=150, format="png")


def _write_csv(result: StressResult, file: Path) -> None:
    with atomic_path(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("corruption", "severity", "parameter", "metric", "value", "low", "high", "num_cases"))
        num_cases = len(result.table.cases) // len(result.test.conditions)
        for condition, estimates in result.figures.items():
            strength = (
                ""
                if condition.corruption == CLEAN
                else CORRUPTIONS[condition.corruption].strengths[condition.severity - 1]
            )
            for metric in estimates:
                values = [_figure(result, condition, metric)[key] for key in ("value", "low", "high")]
                cells = ["" if value is None else f"{value:.6g}" for value in values]
                writer.writerow((condition.corruption, condition.severity, strength, metric, *cells, num_cases))


def _legend(content: Mapping[str, Any]) -> str:
    lines = [
        f"- {name}: {entry['description']}: {', '.join(f'{value:g}' for value in entry['parameters'])}"
        for name, entry in content["corruptions"].items()
    ]
    return "\n".join(["What the severities 1 to 5 are:", "", *lines, ""])


def _figure(result: StressResult, condition: Condition, metric: str) -> dict[str, Any]:
    estimate: Estimate = result.figures[condition][metric]
    return figure(estimate.value, estimate)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
