"""Everything that a report shows, gathered from what the other commands wrote; nothing is computed a second time."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

from braintum.conversion.audit.audit import FORMAT as AUDIT_FORMAT
from braintum.conversion.format.label_names import named_labels
from braintum.evaluation.calibration.calibration_files import CALIBRATION_FILE
from braintum.evaluation.calibration.model_trust import TRUST_FILE
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.statistics import NUM_RESAMPLES
from braintum.evaluation.report.model import ModelFacts, read_model_facts
from braintum.evaluation.results.case_table import CaseTable, case_table
from braintum.evaluation.results.predictions import Predictions, predictions_of_folds, read_json
from braintum.evaluation.results.results import SUMMARY_FILE, write_evaluation
from braintum.evaluation.results.summary import summarise_table
from braintum.evaluation.stress.stress_cli import FOLDER_NAME as STRESS_FOLDER
from braintum.evaluation.stress.stress_results import STRESS_FILE

logger = logging.getLogger(__name__)

CALIBRATION_FOLDER = "calibration"
EXPLANATIONS_FILE, OVERLAY_ENDING = "explanations.json", "_overlay.png"
_EXPLAINED = {"case", "class", "method"}


@dataclass(frozen=True)
class Explanations:
    """What ``braintum_explain`` wrote.

    Attributes:
        entries: case → its row of ``explanations.json``.
        folders: case → where its map and picture are.
    """

    entries: Mapping[str, Mapping[str, Any]]
    folders: Mapping[str, Path]

    def map_file(self, case: str, ending: str) -> Path | None:
        """The map of a case, in the geometry of its image; None without one."""
        return self._file(case, ending)

    def overlay(self, case: str) -> Path | None:
        """The picture of a case; None without one."""
        return self._file(case, OVERLAY_ENDING)

    def _file(self, case: str, ending: str) -> Path | None:
        if case not in self.folders:
            return None
        file = self.folders[case] / f"{case}{ending}"
        return file if file.is_file() else None


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        facts: what was trained on what.
        table: figures of each case.
        summary: figures over cases, see :func:`braintum.evaluation.results.summary.summarise_table`.
        evaluation_folder: where they were written.
        images: case → files of its channels; empty where the raw data set is not there.
        calibration: content of ``calibration.json``, or None; the same for the next ones.
        trust: content of ``trust.json`` beside it.
        stress: content of ``stress.json``.
        audit: content of ``audit.json``.
        explanations: what ``braintum_explain`` wrote.
    """

    facts: ModelFacts
    table: CaseTable
    summary: Mapping[str, Any]
    evaluation_folder: Path
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    trust: Mapping[str, Any] | None = None
    stress: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    explanations: Explanations | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """Of the data set; empty for one without classes."""
        schema = self.table.predictions.schema
        return () if schema is None else schema.class_names

    @cached_property
    def true_class_names(self) -> np.ndarray:
        """(cases,), texts; empty where unknown."""
        return self._named(self.table.true_class)

    @cached_property
    def predicted_class_names(self) -> np.ndarray:
        """(cases,), texts; empty where withheld or not predicted."""
        return self._named(self.table.predicted_class)

    def _named(self, classes: np.ndarray) -> np.ndarray:
        return np.array(["" if index == UNKNOWN else self.class_names[index] for index in classes], dtype=object)

    def map_file(self, case: str) -> Path | None:
        """The explanation of a case as an image; None without one."""
        ending = self.facts.dataset_json["file_ending"]
        return None if self.explanations is None else self.explanations.map_file(case, ending)

    @property
    def size_unit(self) -> str:
        """Unit of the sizes of tumours."""
        if self.table.unit == "px":
            return "px"
        shape = self.facts.plans.get("original_median_shape_after_transp", ())
        return "mm²" if len(shape) == 3 and shape[0] == 1 else "mm³"


def gather_report(
    model_folder: Path,
    folds: Sequence[int] | None = None,
    evaluation_folder: Path | None = None,
    calibration_file: Path | None = None,
    stress_file: Path | None = None,
    audit_file: Path | None = None,
    explanation_folders: Sequence[Path] = (),
    n_processes: int = 1,
    num_resamples: int = NUM_RESAMPLES,
) -> Report:
    """Read everything that a report of a trained model shows.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
        folds: None for all that have finished their validation.
        evaluation_folder: what ``braintum_evaluate`` wrote; None for its own default in the model folder. Where there
            is no evaluation, or where the predictions are newer, it is made and written there.
        calibration_file: ``calibration.json``; None for the one in the model folder, if it is there.
        stress_file: ``stress.json``; None for the one in the model folder, if it is there.
        audit_file: ``audit.json``; None leaves it out.
        explanation_folders: what ``braintum_explain`` wrote, such as a folder a fold.
        n_processes: for an evaluation.
        num_resamples: for an evaluation.

    Raises:
        FileNotFoundError: a folder or a named file is missing.
        ValueError: a file is damaged, or is not what its name says.
    """
    predictions = predictions_of_folds(model_folder, folds)
    folds = sorted(set(predictions.fold_of_case.values()))
    if evaluation_folder is None:
        evaluation_folder = model_folder / f"crossval_results_folds_{folds_tuple_to_string(folds)}"
    table, summary = _evaluation(predictions, evaluation_folder, n_processes, num_resamples)
    if calibration_file is None and (default := model_folder / CALIBRATION_FOLDER / CALIBRATION_FILE).is_file():
        calibration_file = default
    trust_file = None if calibration_file is None else calibration_file.with_name(TRUST_FILE)
    if stress_file is None and (default := model_folder / STRESS_FOLDER / STRESS_FILE).is_file():
        stress_file = default
    return Report(
        read_model_facts(model_folder, folds),
        table,
        summary,
        evaluation_folder,
        _image_files(predictions, model_folder),
        _content(calibration_file, ("before", "after", "reliability"), "braintum_calibrate"),
        _content(trust_file, ("promises", "classes"), "braintum_calibrate")
        if trust_file is not None and trust_file.is_file()
        else None,
        _content(stress_file, ("clean", "corruptions"), "braintum_evaluate --stress"),
        _audit(audit_file),
        read_explanations(explanation_folders) if explanation_folders else None,
    )


def _evaluation(
    predictions: Predictions, folder: Path, n_processes: int, num_resamples: int
) -> tuple[CaseTable, Mapping[str, Any]]:
    """The figures that an evaluation wrote; if there is none, or an old one, it is made."""
    file = folder / SUMMARY_FILE
    if file.is_file():
        written = file.stat().st_mtime
        if all(mask.stat().st_mtime <= written for mask in predictions.masks.values()):
            return _written_evaluation(predictions, file)
        logger.warning("%s is older than the predictions: evaluating again", file)
    table = case_table(predictions, n_processes)
    summary = summarise_table(table, num_resamples)
    write_evaluation(table, summary, folder)
    return _written_evaluation(predictions, file)


def _written_evaluation(predictions: Predictions, file: Path) -> tuple[CaseTable, Mapping[str, Any]]:
    try:
        content = load_summary_json(str(file))
        per_case, summary = content["metric_per_case"], content["braintum"]
        cases = [entry["case"] for entry in per_case]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no evaluation by braintum_evaluate: {error!r}; evaluate again, or choose another folder with "
            "--evaluation"
        ) from error
    if sorted(cases) != sorted(predictions.masks):
        raise ValueError(
            f"{file} evaluates {len(cases)} cases, the folds hold {len(predictions.masks)} or other ones; choose the "
            "folds with -f, or delete the file to evaluate again"
        )
    by_case = dict(zip(cases, per_case, strict=True))
    labels = named_labels(predictions.dataset_json)
    return CaseTable(predictions, labels, [by_case[case] for case in predictions.masks]), summary


def _image_files(predictions: Predictions, model_folder: Path) -> dict[str, list[str]]:
    """Channels of each case in the raw data set; empty where that is not there.

    Not by nnU-Net's ``get_filenames_of_train_images_and_targets``, which starts twelve processes to list a folder.
    """
    raw = Path(nnUNet_raw.get() or "nnUNet_raw (not set)") / read_json(model_folder / "plans.json")["dataset_name"]
    if not (raw / "dataset.json").is_file():
        return {}
    content = read_json(raw / "dataset.json")
    if "dataset" in content:  # names its files itself, absolute or from the folder on
        named = {
            case: [str(raw / os.path.expandvars(name)) for name in entry["images"]]
            for case, entry in content["dataset"].items()
        }
        return {case: named[case] for case in predictions.masks if case in named}
    channels: dict[str, list[str]] = {}
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(content["file_ending"]))
    for name in sorted(os.listdir(raw / "imagesTr")) if (raw / "imagesTr").is_dir() else ():
        if (match := pattern.fullmatch(name)) is not None:
            channels.setdefault(match[1], []).append(str(raw / "imagesTr" / name))
    return {case: channels[case] for case in predictions.masks if case in channels}


def _content(file: Path | None, keys: Sequence[str], command: str) -> Mapping[str, Any] | None:
    if file is None:
        return None
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; {command} writes it")
    content = read_json(file)
    if missing := [key for key in keys if not isinstance(content.get(key), Mapping)]:
        raise ValueError(f"{file} lacks {', '.join(missing)}: it was not written by {command}")
    return content


def _audit(file: Path | None) -> Mapping[str, Any] | None:
    if file is None:
        return None
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; braintum_audit -o writes it")
    content = read_json(file)
    if content.get("format") != AUDIT_FORMAT:
        raise ValueError(f"{file} is no audit; name the audit.json that braintum_audit wrote")
    return content


def read_explanations(folders: Sequence[Path]) -> Explanations:
    """What ``braintum_explain`` wrote into folders; of a case in several of them, the last one counts.

    Raises:
        FileNotFoundError: a folder holds no explanations.
        ValueError: its table is damaged.
    """
    entries: dict[str, Mapping[str, Any]] = {}
    folder_of_case: dict[str, Path] = {}
    for folder in folders:
        file = folder / EXPLANATIONS_FILE
        if not file.is_file():
            raise FileNotFoundError(f"no {EXPLANATIONS_FILE} in {folder}; braintum_explain writes it")
        rows = read_json(file).get("cases")
        listed = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        if any(row.keys() & {"structure", "block"} for row in listed):
            raise ValueError(f"{file} explains masks; a report shows explanations of classes")
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) and set(row) >= _EXPLAINED for row in rows):
            raise ValueError(f"{file} was not written by braintum_explain: it has no list of explained cases")
        entries |= {str(row["case"]): row for row in rows}
        folder_of_case |= dict.fromkeys((str(row["case"]) for row in rows), folder)
    return Explanations(entries, folder_of_case)
