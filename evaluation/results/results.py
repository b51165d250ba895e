"""What an evaluation writes: figures for programs, cases for spreadsheets, tables for people and papers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from braintum.commands.provenance import provenance, read_provenance
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.evaluation.metrics.segmentation_metrics import save_summary, summarise
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.predictions import Predictions
from braintum.evaluation.results.tables import Table, latex_macros, tables_of

SUMMARY_FILE, CASES_FILE = "summary.json", "cases.csv"


def write_evaluation(table: CaseTable, summary: Mapping[str, Any], folder: Path) -> None:
    """Write ``summary.json``, ``cases.csv``, ``tables.md``, ``tables.tex`` and ``macros.tex``.

    ``summary.json`` is nnU-Net's, so that its tools read it, with the figures of ``summary`` under ``braintum``.

    Args:
        table: figures of each case.
        summary: of that table, see :func:`braintum.evaluation.results.summary.summarise_table`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table.write_csv(folder / CASES_FILE)
    dataset_json = table.predictions.dataset_json
    labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    declared = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    write_tables(tables_of(summary), folder, "tables")
    _write(folder / "macros.tex", latex_macros(summary))
    save_summary(
        {
            **summarise(table.per_case, declared),
            "braintum": {**summary, "provenance": provenance(predicted_by=predicted_by(table.predictions))},
        },
        folder / SUMMARY_FILE,
    )


def predicted_by(predictions: Predictions) -> dict[str, Any]:
    """What made the predictions: last part of a folder (of a fold, ``fold_X``) -> its ``provenance.json`` or None."""
    folders = sorted({mask.parent for mask in predictions.masks.values()})
    return {
        folder.parent.name if folder.name == "validation" else folder.name: read_provenance(folder)
        for folder in folders
    }


def write_comparison(comparison: Mapping[str, Any], tables: Sequence[Table], folder: Path) -> None:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.tex``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(tables, folder, "comparison")
    write_json_atomic(folder / "comparison.json", {**comparison, "provenance": provenance()})


def write_tables(tables: Sequence[Table], folder: Path, name: str) -> None:
    """Tables as ``<name>.md`` and ``<name>.tex`` (for LaTeX's booktabs)."""
    _write(folder / f"{name}.md", "\n".join(f"## {table.title}\n\n{table.text('github')}\n" for table in tables))
    _write(folder / f"{name}.tex", "\n".join(f"% {table.title}\n{table.text('latex_booktabs')}\n" for table in tables))


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
