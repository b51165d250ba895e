"""The report as a page: what was gathered, put into the template."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from braintum.evaluation.metrics.statistics import MIN_CLUSTERS
from braintum.evaluation.report import tables
from braintum.evaluation.report.cards import case_card, explanation_rows, failure_row
from braintum.evaluation.report.cases import CaseGroup, failures, ranked_cases, shown_rows
from braintum.evaluation.report.report import Report
from braintum.evaluation.report.sections import class_section, mask_charts, stress_charts, training_charts, trust_chart
from braintum.evaluation.results.tables import number

MAX_FAILURES = 500
"""Failures of a kind that the page lists; `cases.csv` of the evaluation holds all cases."""
TEMPLATES = Path(__file__).with_name("template")


def render_report(report: Report, output: Path, num_cases: int = 3, command: str = "") -> str:
    """The whole page.

    Args:
        report: what was gathered.
        output: where the page will be; links to masks are relative to it.
        num_cases: pictures of each group of cases.
        command: the command line that makes this report.
    """
    table, summary, facts = report.table, report.summary, report.facts
    ranked, failed = ranked_cases(table, num_cases), failures(table)
    rows = shown_rows([*ranked, *failed], num_cases)
    cards = {row: case_card(report, row, output) for row in rows}
    context = {
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "facts": facts,
        "summary": summary,
        "lede": _lede(report),
        "interval_note": interval_note(summary),
        "today": date.today().isoformat(),
        "command": command,
        "headlines": tables.headlines(summary),
        "overview": tables.overview_table(summary),
        "training": training_charts(report),
        "folds": tables.fold_table(summary["folds"]) if "folds" in summary else None,
        "masks": tables.mask_tables(summary, report.class_names),
        "mask_charts": mask_charts(report),
        "classes": class_section(report),
        "calibration": report.calibration,
        "calibration_table": None if report.calibration is None else tables.calibration_table(report.calibration),
        "trust": report.trust,
        "trust_table": None if report.trust is None else tables.trust_table(report.trust),
        "trust_chart": trust_chart(report.trust),
        "ranked": ranked,
        "failed": failed,
        "failure_rows": {
            group.key: [failure_row(report, row, output) for row in group.rows[:MAX_FAILURES]] for group in failed
        },
        "num_failed": len({row for group in failed for row in group.rows}),
        "num_shown": num_cases,
        "cards": cards,
        "new_cards": _new_cards([*ranked, *failed], num_cases),
        "has_pictures": any(card.picture is not None for card in cards.values()),
        "explanations": report.explanations,
        "explanation_rows": explanation_rows(report),
        "stress": report.stress,
        "stress_charts": stress_charts(report.stress),
        "stress_table": None if report.stress is None else tables.stress_table(report.stress),
        "audit": report.audit,
        "audit_table": None if report.audit is None else tables.audit_table(report.audit),
    }
    return template_environment().get_template("report.html.j2").render(context)


def template_environment() -> Environment:
    """Jinja with what the templates need."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of cases, patients and classes come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: number(None if value is None else float(value))
    return environment


def _lede(report: Report) -> str:
    summary = report.summary
    text = f"{summary['num_cases']} held-out cases"
    if summary["num_patients"] is not None:
        count = summary["num_patients"]
        text += f" of {count} patient{'' if count == 1 else 's'}"
    folds = len(report.facts.folds)
    text += f", each predicted by the fold that did not see it ({folds} fold{'' if folds == 1 else 's'})."
    classification = summary.get("classification", {})
    if classification.get("num_cases"):
        majority = number(classification["majority_rate"]["value"])
        text += f" Naming the most frequent class alone would be right in {majority}."
    return text


def interval_note(summary: Mapping[str, Any]) -> str:
    """What the intervals of a page are, or why there are none."""
    units = "independent patients" if summary["num_patients"] is not None else "cases (patients are not known)"
    if summary["num_clusters"] < MIN_CLUSTERS:
        count = summary["num_clusters"]
        noun = units.replace("patients", "patient", 1) if count == 1 and summary["num_patients"] is not None else units
        return f"There are no intervals: the held-out cases come from {count} {noun}, and {MIN_CLUSTERS} are needed."
    return (
        f"Intervals are 95 % intervals from {summary['num_resamples']} bootstrap resamples of "
        f"{summary['num_clusters']} {units}; a figure at its limit has none."
    )


def _new_cards(groups: Sequence[CaseGroup], number_shown: int) -> dict[str, list[int]]:
    """Rows whose card stands in each group: in the first one that they are in."""
    seen: set[int] = set()
    found: dict[str, list[int]] = {}
    for group in groups:
        rows = [row for row in group.rows[:number_shown] if row not in seen]
        found[group.key] = rows
        seen.update(rows)
    return found
