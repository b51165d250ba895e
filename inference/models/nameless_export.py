"""A trained model in a zip file that names no case and no patient, laid out as ``nnUNetv2_export_model_to_zip`` does.

nnU-Net's export carries the names of the training in the validation's summary, our fingerprint names cases, and
whatever ``dataset.json`` lists is in every checkpoint. Here only what is known to be needed is packed, instead of all
but what is known to name somebody.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.format.calibration import CALIBRATION_KEY
from braintum.conversion.format.cases import CASES_FILE, read_cases
from braintum.conversion.format.splits import SPLITS_FILE
from braintum.inference.models.checkpoints import load_checkpoint_safely
from braintum.inference.models.model_files import (
    FINGERPRINT_FILE,
    checked_configuration,
    read_dataset_json,
    read_plans,
)
from braintum.inference.models.segmentation_predictor import available_folds
from braintum.inference.models.trained_with import check_trained_with

_SUMMARY = "validation/summary.json"
_DATASET = (
    *("name", "description", "reference", "licence", "license", "release", "channel_names", "modality", "labels"),
    *("regions_class_order", "numTraining", "file_ending", "overwrite_image_reader_writer", "source_labels"),
    *("classification", CALIBRATION_KEY),
)
_FINGERPRINT = (
    *("spacings", "shapes_after_crop", "foreground_intensity_properties_per_channel"),
    "median_relative_size_after_cropping",
)
_CHANNEL = ("name", "minimum", "maximum", "missing_images")
_SHORTEST_NAME = 3
"""Shorter names are words and numbers of other meaning."""


def export_model(
    model_folder: Path,
    archive: Path,
    folds: Sequence[int | str] | None,
    checkpoint: str,
    known_names: Iterable[str] = (),
    trust: bool = False,
) -> list[str]:
    """Write a model that predicts as the given one does, and names nobody.

    Checkpoints keep weights, trainer, plans and ``dataset.json``; optimiser, logs, the figures of single cases and
    post-processing are left out.

    Args:
        model_folder: with ``plans.json``, ``dataset.json`` and ``fold_X``.
        archive: zip file to write, for ``braintum_install_model`` or nnU-Net's own installation.
        folds: to pack; None for all that are trained.
        checkpoint: name of the file in each fold, which becomes ``checkpoint_final.pth``.
        known_names: cases and patients of the training, see :func:`names_of_training`; those that the model folder
            tells itself are added.
        trust: load checkpoints that run code.

    Returns:
        The files in the archive.

    Raises:
        FileNotFoundError: a file of the model is missing.
        ValueError: a file is damaged, files do not fit together, or a text that is needed names a case.
    """
    dataset_json = read_dataset_json(model_folder / "dataset.json")
    plans = read_plans(model_folder / "plans.json")
    chosen = list(folds) if folds is not None else [*available_folds(model_folder, checkpoint)]
    nameless_json = _chosen(dataset_json, _DATASET)
    texts = {"dataset.json": nameless_json, "plans.json": plans.plans}
    if (file := model_folder / FINGERPRINT_FILE).is_file():
        texts[FINGERPRINT_FILE] = _nameless_fingerprint(read_json_object(file))
    checkpoints = {}
    for fold in chosen:
        file = model_folder / f"fold_{fold}" / checkpoint
        trained = load_checkpoint_safely(file, trust)
        checked_configuration(read_plans(model_folder / "plans.json"), trained["init_args"]["configuration"], file)
        check_trained_with(trained, plans.plans, dataset_json, file)
        checkpoints[fold] = _nameless_checkpoint(trained, fold, plans.plans, nameless_json)
        if (summary := model_folder / f"fold_{fold}" / _SUMMARY).is_file():
            texts[f"fold_{fold}/{_SUMMARY}"] = _chosen(read_json_object(summary), ("foreground_mean", "mean"))
    names = {*known_names, *_names_in_model(model_folder)}
    for name, content in texts.items():
        _check_names_nobody(content, names, model_folder / name)
    first = checkpoints[chosen[0]]
    configuration = first["init_args"]["configuration"]
    place = f"{plans.plans['dataset_name']}/{first['trainer_name']}__{plans.plans['plans_name']}__{configuration}"
    with atomic_path(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in texts.items():
            packed.writestr(f"{place}/{name}", json.dumps(text, indent=4))
        for fold, weights in checkpoints.items():
            with tempfile.TemporaryDirectory(prefix=".exporting-", dir=archive.absolute().parent) as temporary:
                torch.save(weights, file := Path(temporary, "checkpoint_final.pth"))
                packed.write(file, f"{place}/fold_{fold}/{file.name}")
        return packed.namelist()


def names_of_training(folders: Iterable[Path]) -> set[str]:
    """Cases and patients that ``cases.csv`` and ``splits_final.json`` in a data set's folders name, as far as there."""
    names: set[str] = set()
    for folder in folders:
        if (file := folder / CASES_FILE).is_file():
            for case in read_cases(file).values():
                names |= {case.case, case.patient, case.source}
        if (file := folder / SPLITS_FILE).is_file():
            names |= {name for split in json.loads(file.read_text("utf-8")) for part in split.values() for name in part}
    return names


def _chosen(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


def _nameless_fingerprint(content: Mapping[str, Any]) -> dict[str, Any]:
    channels = [_chosen(channel, _CHANNEL) for channel in content.get("braintum", {}).get("channels", ())]
    return _chosen(content, _FINGERPRINT) | ({"braintum": {"channels": channels}} if channels else {})


def _nameless_checkpoint(
    trained: Mapping[str, Any], fold: int | str, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    arguments = {"configuration": trained["init_args"]["configuration"], "fold": fold}
    for name, content in (("plans", plans), ("dataset_json", dataset_json)):
        if name in trained["init_args"]:  # by which loading checks that they belong together
            arguments[name] = content
    return {
        "network_weights": trained["network_weights"],
        "trainer_name": trained["trainer_name"],
        "init_args": arguments,
        "inference_allowed_mirroring_axes": trained.get("inference_allowed_mirroring_axes"),
    }


def _names_in_model(model_folder: Path) -> set[str]:
    """Cases that the figures of validations name."""
    names = set()
    for file in model_folder.glob(f"fold_*/{_SUMMARY}"):
        for case in read_json_object(file).get("metric_per_case", ()):
            path = str(case.get("prediction_file", ""))
            names.add(re.split(r"[/\\]", path)[-1].partition(".")[0])
    return names


def _check_names_nobody(content: Any, names: Iterable[str], file: Path) -> None:
    texts = list(_texts(content))
    for name in sorted(name for name in names if len(name) >= _SHORTEST_NAME):
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")
        if (found := next(filter(pattern.search, texts), None)) is not None:
            raise ValueError(
                f"{file}: {found[:100]!r} names {name!r}, a case or patient of the training; change that text there"
            )


def _texts(content: Any) -> Iterator[str]:
    """All texts in what JSON holds, keys included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _texts(value)
