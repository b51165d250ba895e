"""What is evaluated: predicted masks and classes beside their truth, from a folder or from the folds of a model."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from dataset_conversion.cases import CASES_FILE, Case, ClassSchema, find_cases_file, read_cases

CLASSES_FOLDER, CLASSES_FILE, VALIDATION_CLASSES_FILE = "classes", "classes.csv", "classification.json"


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model, or of several set against each other, and what is true.

    Attributes:
        name: what tables call them.
        masks: case → predicted segmentation file.
        references: case → true segmentation file; the same cases.
        dataset_json: of the data set.
        class_results: case → result as ``braintum_predict`` writes it; empty for a model without classes.
        cases: case → row of ``cases.csv``; empty if there is none.
        fold_of_case: case → fold that held it out; empty for a folder of predictions.
        missing: cases that have a true segmentation but no prediction.
    """

    name: str
    masks: Mapping[str, Path]
    references: Mapping[str, Path]
    dataset_json: Mapping[str, Any]
    class_results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cases: Mapping[str, Case] = field(default_factory=dict)
    fold_of_case: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def schema(self) -> ClassSchema | None:
        """Class names of the data set."""
        return ClassSchema.from_dataset_json(self.dataset_json)

    @property
    def reader_writer(self) -> BaseReaderWriter:
        """nnU-Net's reader of the segmentation files."""
        example = str(next(iter(self.references.values())))
        return determine_reader_writer_from_dataset_json(dict(self.dataset_json), example, verbose=False)()


def predictions_in_folder(
    prediction_folder: Path,
    reference_folder: Path,
    dataset_file: Path | None = None,
    cases_file: Path | None = None,
    partial: bool = False,
    name: str | None = None,
) -> Predictions:
    """A folder that ``braintum_predict`` or ``nnUNetv2_predict`` wrote, against a folder of true segmentations.

    Args:
        prediction_folder: segmentations, and class results if there are any.
        reference_folder: true segmentations of the same names, such as ``labelsTs``.
        dataset_file: ``dataset.json``; None looks in the prediction folder and beside the reference folder.
        cases_file: ``cases.csv``; None looks beside the reference folder.
        partial: evaluate what is predicted, although cases are missing.
        name: default: the folder's own.

    Raises:
        FileNotFoundError: a folder or file is missing, or nothing is predicted.
        ValueError: cases without truth, or (unless ``partial``) without prediction, or a damaged file.
    """
    for folder in (prediction_folder, reference_folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
    dataset_json = read_json(
        dataset_file or _first_file((prediction_folder, reference_folder.parent), "dataset.json", "-djfile")
    )
    ending = dataset_json["file_ending"]
    masks = files_by_case(prediction_folder, ending)
    references = files_by_case(reference_folder, ending)
    if not masks:
        raise FileNotFoundError(f"{prediction_folder} holds no predicted segmentation (*{ending})")
    if strangers := sorted(masks.keys() - references.keys()):
        raise ValueError(f"{prediction_folder}: {_some(strangers)} have no true segmentation in {reference_folder}")
    missing = tuple(sorted(references.keys() - masks.keys()))
    if missing and not partial:
        raise ValueError(
            f"{prediction_folder}: no prediction of {_some(missing)}, of which {reference_folder} holds the truth; "
            "predict all of them, or evaluate what is there with --partial"
        )
    schema = ClassSchema.from_dataset_json(dataset_json)
    results = {} if schema is None else read_class_results(prediction_folder, schema)
    if cases_file is None and (reference_folder.parent / CASES_FILE).is_file():
        cases_file = reference_folder.parent / CASES_FILE
    return Predictions(
        name or prediction_folder.resolve().name,
        masks,
        {case: references[case] for case in masks},
        dataset_json,
        _of_these_cases(results, masks, prediction_folder),
        {} if cases_file is None else _rows(cases_file, schema, masks),
        missing=missing,
    )


def predictions_of_folds(
    model_folder: Path, folds: Sequence[int] | None = None, cases_file: Path | None = None
) -> Predictions:
    """Validation of the folds of a trained model, merged: each case once, predicted by the fold that held it out.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
        folds: None for all that have finished their validation.
        cases_file: ``cases.csv``; None looks where training does.

    Raises:
        FileNotFoundError: a fold or the truth is missing.
        ValueError: a case occurs in two folds, has no truth, or a file is damaged.
    """
    dataset_json = read_json(_first_file((model_folder,), "dataset.json"))
    dataset_name = read_json(_first_file((model_folder,), "plans.json"))["dataset_name"]
    preprocessed = Path(nnUNet_preprocessed.get() or "nnUNet_preprocessed (not set)") / dataset_name
    raw = Path(nnUNet_raw.get() or "nnUNet_raw (not set)") / dataset_name
    gt_folders = [folder for folder in (preprocessed / "gt_segmentations", raw / "labelsTr") if folder.is_dir()]
    if not gt_folders:
        raise FileNotFoundError(
            f"true segmentations are neither in {preprocessed / 'gt_segmentations'} nor in {raw / 'labelsTr'}; set "
            "nnUNet_preprocessed or nnUNet_raw"
        )
    references = files_by_case(gt_folders[0], dataset_json["file_ending"])
    schema = ClassSchema.from_dataset_json(dataset_json)
    masks: dict[str, Path] = {}
    results: dict[str, Mapping[str, Any]] = {}
    fold_of_case: dict[str, int] = {}
    for fold in validated_folds(model_folder) if folds is None else folds:
        folder = model_folder / f"fold_{fold}" / "validation"
        here = files_by_case(folder, dataset_json["file_ending"]) if folder.is_dir() else {}
        if not here:
            raise FileNotFoundError(f"{folder} holds no predictions; finish the training of fold {fold}, or add --val")
        if repeated := sorted(here.keys() & masks.keys()):
            raise ValueError(f"{folder}: {_some(repeated)} are in fold {fold_of_case[repeated[0]]} already")
        masks |= here
        fold_of_case |= dict.fromkeys(here, fold)
        if schema is not None:
            results |= _of_these_cases(read_class_results(folder, schema), here, folder)
    if strangers := sorted(masks.keys() - references.keys()):
        raise ValueError(f"{model_folder}: {_some(strangers)} have no true segmentation in {gt_folders[0]}")
    if cases_file is None and schema is not None:
        cases_file = find_cases_file(preprocessed, raw)
    cases = {} if cases_file is None else _rows(cases_file, schema, masks)
    references = {case: references[case] for case in masks}
    return Predictions(model_folder.name, masks, references, dataset_json, results, cases, fold_of_case)


def validated_folds(model_folder: Path) -> list[int]:
    """Folds of a model whose final validation is complete.

    Raises:
        FileNotFoundError: there is none.
    """
    names = [file.parent.parent.name for file in model_folder.glob("fold_*/validation/summary.json")]
    folds = sorted(int(number) for name in names if (number := name.removeprefix("fold_")).isdecimal())
    if not folds:
        raise FileNotFoundError(f"{model_folder} has no fold with a finished validation; train one first")
    return folds


def read_class_results(folder: Path, schema: ClassSchema) -> dict[str, dict[str, Any]]:
    """Class results by case: what ``braintum_predict`` or a trainer's validation wrote into a folder.

    Returns:
        Case → ``predicted_class``, ``probabilities`` by class, and whatever else was written; empty if the folder
        holds no class results.

    Raises:
        ValueError: a file is damaged, or of a model with other classes.
    """
    if (folder / VALIDATION_CLASSES_FILE).is_file():
        found = {folder / VALIDATION_CLASSES_FILE: read_json(folder / VALIDATION_CLASSES_FILE).get("cases", {})}
    elif (folder / CLASSES_FOLDER).is_dir():
        found = {file: {file.stem: read_json(file)} for file in sorted((folder / CLASSES_FOLDER).glob("[!.]*.json"))}
    elif (folder / CLASSES_FILE).is_file():
        found = {folder / CLASSES_FILE: _read_classes_csv(folder / CLASSES_FILE)}
    else:
        return {}
    results = {}
    for file, by_case in found.items():
        for case, result in by_case.items():
            probabilities = result.get("probabilities") if isinstance(result, dict) else None
            if not isinstance(probabilities, dict) or set(probabilities) != set(schema.class_names):
                raise ValueError(
                    f"{file}: {case} has no probabilities of the classes {', '.join(schema.class_names)}; was it "
                    "predicted with another model?"
                )
            results[case] = result
    return results


def _read_classes_csv(file: Path) -> dict[str, dict[str, Any]]:
    prefix = "probability_"
    with open(file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return {
            row["case"]: {
                "predicted_class": row["predicted_class"],
                "probabilities": {
                    key.removeprefix(prefix): float(value) for key, value in row.items() if key.startswith(prefix)
                },
            }
            for row in rows
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no table that braintum_predict wrote: {error!r}; predict again") from error


def _of_these_cases(
    results: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Path], folder: Path
) -> dict[str, Mapping[str, Any]]:
    """The class results of the cases that have a mask; all of them have one, or none has."""
    if results and (without := sorted(masks.keys() - results.keys())):
        raise ValueError(f"{folder}: {_some(without)} have a mask but no class; predict them again")
    return {case: results[case] for case in masks if case in results}


def _rows(file: Path, schema: ClassSchema | None, masks: Mapping[str, Path]) -> dict[str, Case]:
    rows = read_cases(file, None if schema is None else schema.class_names)
    if unknown := sorted(masks.keys() - rows.keys()):
        raise ValueError(f"{file} has no row for {_some(unknown)}")
    return {case: rows[case] for case in masks}


def files_by_case(folder: Path, ending: str) -> dict[str, Path]:
    """Segmentation files that nnU-Net would list."""
    names = sorted(entry.name for entry in folder.glob(f"[!.]*{ending}"))
    return {name.removesuffix(ending): folder / name for name in names if not name.startswith(".")}


def _first_file(folders: Sequence[Path], name: str, flag: str | None = None) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"no {name} in {' nor in '.join(str(folder) for folder in folders)}"
        + (f"; name it with {flag}" if flag else ": no folder of a trained model")
    )


def read_json(file: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        ValueError: it does not.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
