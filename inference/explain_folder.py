"""Folder in, folder out: why each case got its class, or its mask."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from braintum.commands.provenance import provenance
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.inference.explanation.explainers import Explainer
from braintum.inference.explanation.explanation_files import map_file_ending
from braintum.inference.models.model_identity import model_identity
from braintum.inference.prediction.input_files import find_cases
from braintum.inference.prediction.preprocessing import ModelDescription

TABLE_FILE = "explanations.csv"
"""A row a case, or of masks a case and structure."""
JSON_FILE = "explanations.json"
"""The same, with what was explained and how."""


@dataclass(frozen=True)
class ExplainedFolder:
    """Outcome of a run.

    Attributes:
        rows: one a case, or of masks one a case and structure, with the explainer's columns.
        failed: case → what is wrong with it.
        without_label: cases that have no label map in the folder of true masks.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    without_label: list[str] = field(default_factory=list)


def explain_folder(
    explainer: Explainer, input_folder: Path, output_folder: Path, limit: int | None = None, show_progress: bool = True
) -> ExplainedFolder:
    """Explain the class or the mask of every case in a folder; one that cannot be explained does not stop the others.

    Args:
        explainer: model and method.
        input_folder: see :func:`braintum.inference.prediction.input_files.find_cases`.
        output_folder: made if need be; gets maps and pictures of each case, :data:`TABLE_FILE` and :data:`JSON_FILE`.
        limit: explain so many cases only, spread evenly over the folder.
        show_progress: a bar over the cases.

    Raises:
        FileNotFoundError: see :func:`braintum.inference.prediction.input_files.find_cases`.
        ValueError: input and output (or labels and output) are one folder, a limit below 1, or the model is the second
            stage of a cascade.
        NotImplementedError: images that explanations are not supported for.
    """
    for folder, what in ((input_folder, "input"), (explainer.labels, "labels")):
        if folder is not None and folder.resolve() == output_folder.resolve():
            raise ValueError(f"{what} and output are the same folder, {folder}; choose another output folder")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is a number of cases, 1 at least, got {limit}")
    predictor = explainer.predictor
    model = ModelDescription.of(predictor)
    ending = predictor.dataset_json["file_ending"]
    map_file_ending(predictor.plans_manager.image_reader_writer_class, ending)
    cases, failed = find_cases(input_folder, ending, model.num_channels)
    names = list(cases)
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    output_folder.mkdir(parents=True, exist_ok=True)
    outcome = ExplainedFolder(failed=failed)
    for case in tqdm(names, disable=not show_progress):
        try:
            outcome.rows.extend(explainer.explain(case, cases[case], output_folder))
        except (ValueError, OSError, RuntimeError) as error:  # memory that runs out is a RuntimeError
            failed[case] = str(error) or type(error).__name__
            continue
        if explainer.labels is not None and not (explainer.labels / f"{case}{ending}").is_file():
            outcome.without_label.append(case)
    _write_tables(output_folder, explainer, outcome.rows)
    return outcome


def _write_tables(folder: Path, explainer: Explainer, rows: Sequence[Mapping[str, Any]]) -> None:
    with (
        atomic_path(folder / TABLE_FILE) as partial,
        open(partial, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(explainer.columns)
        for row in rows:
            writer.writerow(
                "" if row[name] is None else f"{row[name]:.6f}" if isinstance(row[name], float) else row[name]
                for name in explainer.columns
            )
    content = {
        "provenance": provenance(model=model_identity(explainer.predictor)),
        "model": explainer.predictor.model_folder.name if explainer.predictor.model_folder else "",
        "trainer": explainer.predictor.trainer_name,
        "folds": len(explainer.predictor.list_of_parameters),
        "method": explainer.method,
        "cases": list(rows),
    }
    write_json_atomic(folder / JSON_FILE, content)
