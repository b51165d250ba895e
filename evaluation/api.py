"""Python API: figures of predictions, of the folds of trained models, and of several side by side."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

from braintum.commands.boundary import api_function
from braintum.conversion.files.parallel import default_processes
from braintum.evaluation.results.case_table import case_table
from braintum.evaluation.results.comparison import compare, comparison_tables
from braintum.evaluation.results.ensembles import can_be_ensembled, ensemble
from braintum.evaluation.results.find_postprocessing import collect_masks, find_postprocessing
from braintum.evaluation.results.predictions import Predictions, predictions_in_folder, predictions_of_folds
from braintum.evaluation.results.results import write_comparison, write_evaluation
from braintum.evaluation.results.summary import summarise_table
from braintum.evaluation.results.tables import Table, tables_of

__all__ = ["Evaluation", "evaluate", "evaluate_models"]

FilePath = str | os.PathLike[str]
Criterion = Literal["Dice", "macro_f1", "joint"]
_FEWEST_RESAMPLES = 100


@dataclass(frozen=True)
class Evaluation:
    """Figures of one set of predictions or of several.

    Attributes:
        summaries: name → all its figures, see :func:`braintum.evaluation.results.summary.summarise_table`.
        folders: name → where they are written.
        tables: the main ones, to be shown; ``table.text("github")`` is one as text.
        comparison: of several, see :func:`braintum.evaluation.results.comparison.compare`; None for one.
        failed: cases that could not be evaluated, with what is wrong; they are left out everywhere.
        postprocessing: name → nnU-Net's post-processing rules that help it, where they were looked for.
        not_ensembled: pairs of names whose voxel probabilities are missing.
    """

    summaries: dict[str, dict[str, Any]]
    folders: dict[str, Path]
    tables: list[Table]
    comparison: dict[str, Any] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    postprocessing: dict[str, list[str]] = field(default_factory=dict)
    not_ensembled: list[tuple[str, str]] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, Any]:
        """The figures, of one set of predictions.

        Raises:
            ValueError: there are several.
        """
        if len(self.summaries) > 1:
            raise ValueError(f"figures of {', '.join(self.summaries)}: choose one of summaries")
        return next(iter(self.summaries.values()))


@api_function()
def evaluate(
    predictions: FilePath | Sequence[FilePath],
    labels: FilePath,
    output: FilePath | None = None,
    *,
    dataset_json: FilePath | None = None,
    cases: FilePath | None = None,
    partial: bool = False,
    ensembles: bool = False,
    criterion: Criterion = "joint",
    num_resamples: int = 1000,
    num_processes: int | None = None,
) -> Evaluation:
    """Compare predictions with the truth, as ``braintum_evaluate -p -g`` does.

    Example:
        >>> found = bt.evaluate("predictions", "labels", cases="cases.csv")
        >>> 0 <= found.summary["dice"]["value"] <= 1
        True

    Args:
        predictions: folder of predicted masks and classes, or several folders, to be set side by side.
        labels: folder of true label maps, such as ``labelsTs``.
        output: for ``summary.json``, tables and ``cases.csv``; None for the folder of predictions. Several need one.
        dataset_json: None for that of the predictions, or the one beside ``labels``.
        cases: ``cases.csv`` with classes and patients; None for the one beside ``labels``, if there is one.
        partial: evaluate what is predicted, although cases are missing.
        ensembles: also pairs of folders, where voxel probabilities were saved.
        criterion: by which the best of several is chosen.
        num_resamples: of the bootstrap over patients that intervals come from.
        num_processes: that work at the same time; None for as many as there are cores to use.

    Raises:
        InputError: cases without truth or without prediction, or a damaged file.
        MissingFileError: a folder or file is missing, or nothing is predicted.
        FileError: the output cannot be written.
    """
    folders = _listed(predictions)
    found = [
        predictions_in_folder(folder, Path(labels), _path(dataset_json), _path(cases), partial, strict=False)
        for folder in folders
    ]
    sources = _with_outputs(found, folders, _path(output))
    return _evaluate(sources, _path(output), ensembles, criterion, num_resamples, num_processes)


@api_function()
def evaluate_models(
    models: FilePath | Sequence[FilePath],
    output: FilePath | None = None,
    *,
    folds: Sequence[int] | None = None,
    cases: FilePath | None = None,
    look_for_postprocessing: bool = False,
    ensembles: bool = False,
    criterion: Criterion = "joint",
    num_resamples: int = 1000,
    num_processes: int | None = None,
) -> Evaluation:
    """Merge and judge the validation of all folds of a trained model, as ``braintum_evaluate -d`` does.

    Example:
        >>> list(bt.evaluate_models(folder.parent).folders.values())[0].name
        'crossval_results_folds_0'

    Args:
        models: folder of a trained model, or several, to be set side by side.
        output: None for ``crossval_results_folds_X`` in the model folder. Several need one.
        folds: None for all that have finished their validation.
        cases: see :func:`evaluate`; None for the data set's.
        look_for_postprocessing: of nnU-Net's, on the merged folds; ``braintum_postprocess`` applies it.
        ensembles: see :func:`evaluate`.
        criterion: see :func:`evaluate`.
        num_resamples: see :func:`evaluate`.
        num_processes: see :func:`evaluate`.

    Raises:
        InputError: a case occurs in two folds or has no truth, or a damaged file.
        MissingFileError: a model, a fold or the truth is missing.
        FileError: the output cannot be written.
    """
    folders = _listed(models)
    found = [predictions_of_folds(folder, folds, _path(cases), strict=False) for folder in folders]
    defaults = [
        folder
        / f"crossval_results_folds_{folds_tuple_to_string(tuple(sorted(set(predictions.fold_of_case.values()))))}"
        for folder, predictions in zip(folders, found, strict=True)
    ]
    sources = _with_outputs(found, defaults, _path(output))
    return _evaluate(
        sources, _path(output), ensembles, criterion, num_resamples, num_processes, look_for_postprocessing
    )


def _evaluate(
    sources: list[tuple[Predictions, Path]],
    output: Path | None,
    ensembles: bool,
    criterion: Criterion,
    num_resamples: int,
    num_processes: int | None,
    look_for_postprocessing: bool = False,
) -> Evaluation:
    """Figures of predictions, each written to its folder; several also side by side."""
    if num_resamples < _FEWEST_RESAMPLES:
        raise ValueError(f"{num_resamples} resamples: fewer than {_FEWEST_RESAMPLES} give no 95 % interval")
    processes = num_processes or default_processes()
    combined: list[tuple[Predictions, Path]] = []
    not_ensembled = []
    if ensembles and output is not None:
        for (first, _), (second, _) in itertools.combinations(sources, 2):
            target = output / f"ensemble___{first.name}___{second.name}"
            if can_be_ensembled((first, second)):
                combined.append((ensemble((first, second), target, processes), target))
            else:
                not_ensembled.append((first.name, second.name))
    sources = sources + combined
    tables = [case_table(predictions, processes, strict=False) for predictions, _ in sources]
    # models are compared on the same cases
    failed = {case: fault for table in tables for case, fault in table.predictions.failed.items()}
    tables = [table.without(failed) for table in tables] if failed else tables
    summaries, postprocessing = [], {}
    for table, (_, target) in zip(tables, sources, strict=True):
        summary = summarise_table(table, num_resamples)
        write_evaluation(table, summary, target)
        summaries.append(summary)
        if look_for_postprocessing and table.predictions.fold_of_case:  # not of ensembles: rules belong to one model
            postprocessing[table.predictions.name] = _find_postprocessing(table.predictions, target, processes)
    comparison = None
    if len(sources) == 1 or output is None:
        shown = tables_of(summaries[0])
    else:
        comparison = compare(tables, summaries, criterion, num_resamples)
        shown = comparison_tables(comparison, len(tables[0].cases))
        write_comparison(comparison, shown, output)
    names = [predictions.name for predictions, _ in sources]
    folders = dict(zip(names, (target for _, target in sources), strict=True))
    return Evaluation(
        dict(zip(names, summaries, strict=True)), folders, shown, comparison, failed, postprocessing, not_ensembled
    )


def _find_postprocessing(predictions: Predictions, output: Path, num_processes: int) -> list[str]:
    model_folder = next(iter(predictions.masks.values())).parents[2]
    collect_masks(predictions, model_folder, output)
    return find_postprocessing(output, next(iter(predictions.references.values())).parent, num_processes)


def _with_outputs(
    found: Sequence[Predictions], defaults: Sequence[Path], output: Path | None
) -> list[tuple[Predictions, Path]]:
    """Predictions, and where their figures go.

    Raises:
        ValueError: several need a folder.
    """
    if len(found) > 1 and output is None:
        raise ValueError("several models need a folder for their comparison: give -o, or in Python output")
    return [
        (predictions, default if output is None else output / predictions.name if len(found) > 1 else output)
        for predictions, default in zip(found, defaults, strict=True)
    ]


def _listed(folders: FilePath | Sequence[FilePath]) -> list[Path]:
    if isinstance(folders, (str, os.PathLike)):
        return [Path(folders)]
    if not folders:
        raise ValueError("no folder is given")
    return [Path(folder) for folder in folders]


def _path(path: FilePath | None) -> Path | None:
    return None if path is None else Path(path)
