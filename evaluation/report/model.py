"""What was trained on what: the facts of a trained model that a report opens with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from braintum.commands.version import __version__
from braintum.conversion.format.cases import Case, ClassSchema, find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, read_splits
from braintum.evaluation.report.training_log import TrainingLog, read_training_log
from braintum.evaluation.results.predictions import read_json


@dataclass(frozen=True)
class ModelFacts:
    """A trained model and its data.

    Attributes:
        dataset_name: as nnU-Net names it.
        trainer: class name.
        plans_name: plans identifier.
        configuration: such as ``2d``.
        folds: that are reported.
        dataset_json: of the data set.
        plans: content of ``plans.json``.
        training_cases: fold → cases that it was trained on; empty where the splits are not there.
        cases: rows of the training part of ``cases.csv``; empty without one.
        logs: fold → what its trainer logged; folds without a checkpoint are missing.
        settings: fold → what ``debug.json`` says, as texts.
    """

    dataset_name: str
    trainer: str
    plans_name: str
    configuration: str
    folds: Sequence[int]
    dataset_json: Mapping[str, Any]
    plans: Mapping[str, Any]
    training_cases: Mapping[int, int] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    logs: Mapping[int, TrainingLog] = field(default_factory=dict)
    settings: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def dataset_id(self) -> str:
        """The number in the data set's name; the whole name where it has none."""
        number = self.dataset_name.removeprefix("Dataset").partition("_")[0]
        return str(int(number)) if number.isdecimal() else self.dataset_name

    @property
    def model_arguments(self) -> str:
        """What names the model on the command line of braintum's commands."""
        return f"-d {self.dataset_id} -p {self.plans_name} -tr {self.trainer} -c {self.configuration}"

    @property
    def training_commands(self) -> list[str]:
        """What trains the folds."""
        common = f"nnUNetv2_train {self.dataset_id} {self.configuration}"
        return [f"{common} {fold} -p {self.plans_name} -tr {self.trainer}" for fold in self.folds]

    def class_counts(self) -> list[tuple[str, int, int | None]]:
        """Name, cases and patients of each class in the training data, cases of unknown class last.

        A patient counts in each class of which it has cases; None where the patients are not known.
        """
        schema = ClassSchema.from_dataset_json(self.dataset_json)
        names = () if schema is None else schema.class_names
        knows_patients = any(case.patient for case in self.cases)
        counts: list[tuple[str, int, int | None]] = []
        for name in (*names, ""):
            members = [case for case in self.cases if case.tumour_class == name]
            if name or members:
                patients = len({case.patient or case.case for case in members}) if knows_patients else None
                counts.append((name or "unknown", len(members), patients))
        return counts

    def data_rows(self) -> list[tuple[str, str]]:
        """Name and value of what is known of the data."""
        channels = ", ".join(str(name) for name in self.dataset_json.get("channel_names", {}).values())
        labels = ", ".join(name for name in self.dataset_json["labels"] if name != "background")
        entry = {name: str(self.dataset_json.get(name, "")) for name in ("description", "reference", "licence")}
        patients = {case.patient for case in self.cases if case.patient}
        rows = [
            ("Data set", self.dataset_name),
            ("Description", entry["description"]),
            ("Source", entry["reference"]),
            ("Licence", entry["licence"] or str(self.dataset_json.get("license", ""))),
            ("Cases", str(self.dataset_json.get("numTraining", ""))),
            ("Patients or groups", str(len(patients) or "")),
            ("Channels", channels),
            ("Labels", labels),
        ]
        return [(name, value) for name, value in rows if value]

    def model_rows(self) -> list[tuple[str, str]]:
        """Name and value of what is known of the model and its training."""
        configuration = self.plans.get("configurations", {}).get(self.configuration, {})
        network = str(configuration.get("architecture", {}).get("network_class_name", "")).rpartition(".")[2]
        trained = self._of_folds("network")
        if trained.isidentifier() and trained != "OptimizedModule":  # the wrapper of torch.compile
            network = trained
        epochs = sorted({log.num_epochs for log in self.logs.values()})
        seconds = sum(log.seconds for log in self.logs.values())
        rows = [
            ("Trainer", self.trainer),
            ("Network", network),
            ("Planner", f"{self.plans.get('experiment_planner_used', '')} ({self.plans_name})"),
            ("Configuration", self.configuration),
            ("Patch", _times(configuration.get("patch_size", ()))),
            ("Spacing", _times(f"{value:.3g}" for value in configuration.get("spacing", ()))),
            ("Batch", self._of_folds("batch_size") or str(configuration.get("batch_size", ""))),
            ("Normalisation", ", ".join(configuration.get("normalization_schemes", ()))),
            ("Folds", ", ".join(str(fold) for fold in self.folds)),
            ("Training cases", _folds_text(self.training_cases)),
            ("Epochs", " or ".join(str(number) for number in epochs)),
            ("Iterations an epoch", self._of_folds("num_iterations_per_epoch")),
            ("Time of training", _duration(seconds) if seconds else ""),
            ("Device", self._of_folds("gpu_name") or self._of_folds("device")),
            ("Seed", self._of_folds("seed").replace("None", "none")),
            ("Torch of the training", self._of_folds("torch_version")),
            ("Planned with braintum", str(self.plans.get("braintum_version", ""))),
            ("Report by", f"braintum {__version__}, nnU-Net {metadata.version('nnunetv2')}"),
        ]
        return [(name, value) for name, value in rows if value]

    def decisions(self) -> list[tuple[str, str, str]]:
        """Part, subject and text of every decision of our planner; empty for stock plans."""
        parts = self.plans.get("braintum_decisions", {})
        return [
            (part, subject, str(text))
            for part, decisions in parts.items()
            if part in ("data", self.configuration) and isinstance(decisions, Mapping)
            for subject, text in decisions.items()
        ]

    def _of_folds(self, name: str) -> str:
        """What ``debug.json`` of the folds says, without repetition."""
        return ", ".join(dict.fromkeys(values[name] for values in self.settings.values() if name in values))


def read_model_facts(model_folder: Path, folds: Sequence[int]) -> ModelFacts:
    """Facts from the model's folder, the preprocessed and the raw data set; what is not there stays empty.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
        folds: to report.

    Raises:
        ValueError: the folder's name is none of nnU-Net's, or a file is damaged.
        FileNotFoundError: ``dataset.json`` or ``plans.json`` is missing.
    """
    parts = model_folder.resolve().name.split("__")
    if len(parts) != 3:
        raise ValueError(f"{model_folder} is no folder of a trained model; its name is TRAINER__PLANS__CONFIGURATION")
    dataset_json, plans = (read_json(model_folder / name) for name in ("dataset.json", "plans.json"))
    name = plans["dataset_name"]
    preprocessed = Path(nnUNet_preprocessed.get() or "nnUNet_preprocessed (not set)") / name
    raw = Path(nnUNet_raw.get() or "nnUNet_raw (not set)") / name
    logs = {fold: read_training_log(model_folder / f"fold_{fold}") for fold in folds}
    settings = {
        fold: {key: str(value) for key, value in read_json(file).items()}
        for fold in folds
        if (file := model_folder / f"fold_{fold}" / "debug.json").is_file()
    }
    return ModelFacts(
        name,
        parts[0],
        parts[1],
        parts[2],
        folds,
        dataset_json,
        plans,
        _training_cases(preprocessed / SPLITS_FILE, folds),
        _cases(preprocessed, raw),
        {fold: log for fold, log in logs.items() if log is not None},
        settings,
    )


def _training_cases(file: Path, folds: Sequence[int]) -> dict[int, int]:
    if not file.is_file():
        return {}
    splits = read_splits(file)
    return {fold: len(splits[fold]["train"]) for fold in folds if 0 <= fold < len(splits)}


def _cases(preprocessed: Path, raw: Path) -> list[Case]:
    try:
        file = find_cases_file(preprocessed, raw)
    except FileNotFoundError:  # a model without classes needs none
        return []
    return [case for case in read_cases(file).values() if case.split == "train"]


def _times(values: Any) -> str:
    return " × ".join(str(value) for value in values)


def _folds_text(training_cases: Mapping[int, int]) -> str:
    if len(set(training_cases.values())) <= 1:
        return str(next(iter(training_cases.values()), ""))
    return ", ".join(f"{number} (fold {fold})" for fold, number in training_cases.items())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
