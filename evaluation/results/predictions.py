"""What is evaluated: predicted masks and classes beside their truth, from a folder or from the folds of a model."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from braintum.conversion.files.json_files import read_dataset_json
from braintum.conversion.files.json_files import read_json_object as read_json
from braintum.conversion.files.volumes import first_undamaged
from braintum.conversion.format.cases import CASES_FILE, Case, ClassSchema, find_cases_file, read_cases

_LOGGER = logging.getLogger(__name__)

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
        failed: cases that cannot be evaluated, with what is wrong; no longer among the others.
    """

    name: str
    masks: Mapping[str, Path]
    references: Mapping[str, Path]
    dataset_json: Mapping[str, Any]
    class_results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cases: Mapping[str, Case] = field(default_factory=dict)
    fold_of_case: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def without(self, faults: Mapping[str, str]) -> "Predictions":
        """The same without some cases.

        Args:
            faults: case → what is wrong with it.

        Raises:
            ValueError: no case is left; the message lists all faults.
        """
        failed = {**self.failed, **faults}
        masks = {case: file for case, file in self.masks.items() if case not in failed}
        if not masks:
            raise ValueError("\n".join([f"{self.name}: no case can be evaluated:", *failed.values()]))

        def of_others(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {case: value for case, value in mapping.items() if case not in failed}

        return replace(
            self,
            masks=masks,
            references=of_others(self.references),
            class_results=of_others(self.class_results),
            cases=of_others(self.cases),
            fold_of_case=of_others(self.fold_of_case),
            failed=failed,
        )

    @property
    def schema(self) -> ClassSchema | None:
        """Class names of the data set."""
        return ClassSchema.from_dataset_json(self.dataset_json)

    @property
    def reader_writer(self) -> BaseReaderWriter:
        """nnU-Net's reader of the segmentation files.

        Raises:
            ValueError: none of them can be read.
        """
        example = first_undamaged((*self.references.values(), *self.masks.values()))
        return determine_reader_writer_from_dataset_json(dict(self.dataset_json), str(example), verbose=False)()


def predictions_in_folder(
    prediction_folder: Path,
    reference_folder: Path,
    dataset_file: Path | None = None,
    cases_file: Path | None = None,
    partial: bool = False,
    name: str | None = None,
    strict: bool = True,
) -> Predictions:
    """A folder that ``braintum_predict`` or ``nnUNetv2_predict`` wrote, against a folder of true segmentations.

    Args:
        prediction_folder: segmentations, and class results if there are any.
        reference_folder: true segmentations of the same names, such as ``labelsTs``.
        dataset_file: ``dataset.json``; None looks in the prediction folder and beside the reference folder.
        cases_file: ``cases.csv``; None looks beside the reference folder.
        partial: evaluate what is predicted, although cases are missing.
        name: default: the folder's own.
        strict: a damaged class result is an error; otherwise its case is left out and noted.

    Raises:
        FileNotFoundError: a folder or file is missing, or nothing is predicted.
        ValueError: cases without truth, or (unless ``partial``) without prediction, or a damaged file.
    """
    for folder in (prediction_folder, reference_folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
    dataset_json = read_dataset_json(
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
    failed: dict[str, str] | None = None if strict else {}
    results = {} if schema is None else read_class_results(prediction_folder, schema, failed)
    masks = {case: file for case, file in masks.items() if case not in (failed or {})}
    if cases_file is None and (reference_folder.parent / CASES_FILE).is_file():
        cases_file = reference_folder.parent / CASES_FILE
    return Predictions(
        name or prediction_folder.resolve().name,
        masks,
        {case: references[case] for case in masks},
        dataset_json,
        _of_these_cases(results, masks, prediction_folder, failed),
        {} if cases_file is None else _rows(cases_file, schema, masks),
        missing=missing,
    ).without(failed or {})


def predictions_of_folds(
    model_folder: Path, folds: Sequence[int] | None = None, cases_file: Path | None = None, strict: bool = True
) -> Predictions:
    """Validation of the folds of a trained model, merged: each case once, predicted by the fold that held it out.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
        folds: None for all that have finished their validation.
        cases_file: ``cases.csv``; None looks where training does.
        strict: see :func:`predictions_in_folder`.

    Raises:
        FileNotFoundError: a fold or the truth is missing.
        ValueError: a case occurs in two folds, has no truth, or a file is damaged.
    """
    dataset_json = read_dataset_json(_first_file((model_folder,), "dataset.json"))
    plans_file = _first_file((model_folder,), "plans.json")
    dataset_name = read_json(plans_file).get("dataset_name")
    if not isinstance(dataset_name, str) or not re.fullmatch(r"Dataset\d{3}_[^/\\]{1,200}", dataset_name):
        raise ValueError(f"{plans_file} names no data set (dataset_name is {str(dataset_name)[:100]!r}); restore it")
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
    failed: dict[str, str] | None = None if strict else {}
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
            of_fold = read_class_results(folder, schema, failed)
            whole = {case: here[case] for case in here.keys() - (failed or {})}
            results |= _of_these_cases(of_fold, whole, folder, failed)
    if results and (without := masks.keys() - results.keys() - (failed or {}).keys()):
        fold = min(fold_of_case[case] for case in without)
        file = model_folder / f"fold_{fold}" / "validation" / VALIDATION_CLASSES_FILE
        raise ValueError(f"{file} is missing, but other folds have class results; validate fold {fold} again (--val)")
    if strangers := sorted(masks.keys() - references.keys()):
        raise ValueError(f"{model_folder}: {_some(strangers)} have no true segmentation in {gt_folders[0]}")
    if cases_file is None and schema is not None:
        cases_file = find_cases_file(preprocessed, raw)
    cases = {} if cases_file is None else _rows(cases_file, schema, masks)
    references = {case: references[case] for case in masks}
    found = Predictions(model_folder.name, masks, references, dataset_json, results, cases, fold_of_case)
    return found.without(failed or {})


def validated_folds(model_folder: Path) -> list[int]:
    """Folds of a model whose final validation is complete.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = {
        int(number): folder
        for folder in model_folder.glob("fold_*/validation")
        if (number := folder.parent.name.removeprefix("fold_")).isdecimal()
    }
    folds = sorted(fold for fold, folder in folders.items() if (folder / "summary.json").is_file())
    for fold in sorted(folders.keys() - folds):
        _LOGGER.warning("fold %d is left out: %s is missing", fold, folders[fold] / "summary.json")
    if not folds:
        raise FileNotFoundError(f"{model_folder} has no fold with a finished validation; train one first")
    return folds


def read_class_results(
    folder: Path, schema: ClassSchema, failed: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Class results by case: what ``braintum_predict`` or a trainer's validation wrote into a folder.

    Args:
        folder: of predictions or of a validation.
        schema: the classes of the data set.
        failed: gets the cases whose results are damaged, with what is wrong; None makes that an error.

    Returns:
        Case → ``predicted_class``, ``probabilities`` by class, and whatever else was written; empty if the folder
        holds no class results.

    Raises:
        ValueError: a file is damaged, or of a model with other classes.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    if (folder / VALIDATION_CLASSES_FILE).is_file():
        by_case = read_json(folder / VALIDATION_CLASSES_FILE).get("cases", {})
        if not isinstance(by_case, dict):
            raise ValueError(f"{folder / VALIDATION_CLASSES_FILE}: its cases are no JSON object; validate again")
        found = {folder / VALIDATION_CLASSES_FILE: by_case}
    elif (folder / CLASSES_FOLDER).is_dir():
        for file in sorted((folder / CLASSES_FOLDER).glob("[!.]*.json")):
            try:
                found[file] = {file.stem: read_json(file)}
            except (ValueError, OSError) as error:
                if failed is None:
                    raise
                failed[file.stem] = str(error) if isinstance(error, ValueError) else f"{file}: {error.strerror}"
    elif (folder / CLASSES_FILE).is_file():
        found = {folder / CLASSES_FILE: _read_classes_csv(folder / CLASSES_FILE)}
    else:
        return {}
    results = {}
    for file, by_case in found.items():
        for case, result in by_case.items():
            fault = _class_result_fault(result, schema)
            if not fault:
                results[case] = result
            elif failed is None:
                raise ValueError(f"{file}: {case} {fault}; was it predicted with another model?")
            else:
                failed[case] = f"{file}: {case} {fault}; was it predicted with another model?"
    return results


def _class_result_fault(result: Any, schema: ClassSchema) -> str:
    """What is wrong with the class result of a case; empty if nothing is."""
    tables = [result.get("probabilities")] if isinstance(result, dict) else [None]
    by_region = result.get("by_region") or {} if isinstance(result, dict) else {}
    tables += list(by_region.values()) if isinstance(by_region, dict) else [None]
    for table in tables:
        if not isinstance(table, dict) or set(table) != set(schema.class_names):
            return f"has no probabilities of the classes {', '.join(schema.class_names)}"
        values = list(table.values())
        if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values) or not 0.5 < sum(values) < 1.5:
            return "has probabilities that are none"
    if result.get("predicted_class") not in ("", *schema.class_names):
        return f"is of the class {str(result.get('predicted_class'))[:100]!r}, which is unknown"
    return ""


def _read_classes_csv(file: Path) -> dict[str, dict[str, Any]]:
    prefix = "probability_"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return {
            row["case"]: {
                "predicted_class": row["predicted_class"],
                "probabilities": {
                    key.removeprefix(prefix): float(value) for key, value in row.items() if key.startswith(prefix)
                },
            }
            for row in rows
        }
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise ValueError(f"{file} is no table that braintum_predict wrote: {error!r}; predict again") from error


def _of_these_cases(
    results: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Path], folder: Path, failed: dict[str, str] | None
) -> dict[str, Mapping[str, Any]]:
    """The class results of the cases that have a mask; all of them should have one, or none has.

    Args:
        failed: see :func:`read_class_results`.
    """
    if results and (without := sorted(masks.keys() - results.keys())):
        files = [folder / name for name in (VALIDATION_CLASSES_FILE, CLASSES_FOLDER, CLASSES_FILE)]
        where = next(file for file in files if file.exists())
        if failed is None:
            raise ValueError(f"{where}: {_some(without)} have a mask but no class; predict them again")
        failed |= {case: f"{where}: {case} has a mask but no class; predict it again" for case in without}
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
