"""Preprocessing of a data set that may be interrupted at any moment.

nnU-Net deletes what is there, and writes into the folder that trainings read: after a crash, half of the cases, and
half a file, look like a preprocessed data set. Here cases are written into a hidden folder beside it, which takes its
name when all of them are there; the same command continues in it. Of several at the same moment, one works.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.conversion.files.atomic import (
    PARTIAL_PREFIX,
    copy_atomic,
    remove_partial_files,
    sync_disks,
    write_json_atomic,
)
from braintum.conversion.files.disk import explain_unwritable
from braintum.conversion.files.lease import leased
from braintum.conversion.files.parallel import run_cases
from braintum.planner.preprocessing.training_files import training_files

_STATE_FILE = "preprocessing_in_progress.json"
_LAST_FILE = ".pkl"  # of a case


@dataclass(frozen=True)
class _Case:
    name: str
    images: list[str]
    label: str


def preprocess_dataset(
    preprocessor: DefaultPreprocessor,
    dataset_name: str,
    configuration_name: str,
    plans_identifier: str,
    num_processes: int,
) -> None:
    """Preprocess all training cases, and copy their label maps for the validation.

    Args:
        preprocessor: whose ``run_case_save`` preprocesses a case.
        dataset_name: as ``DatasetXXX_Name``.
        configuration_name: of the plans.
        plans_identifier: name of the plans file.
        num_processes: workers; 1 stays in this process.

    Raises:
        FileNotFoundError: the data set has no raw images, or no plans.
        UnwritableFolderError: the disk is full, or the folder read-only.
        OSError: a worker process was killed. What was preprocessed is kept then, as after any other error.
    """
    raw, preprocessed = Path(nnUNet_raw) / dataset_name, Path(nnUNet_preprocessed) / dataset_name
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(f"{plans_file} does not exist; plan the data set with nnUNetv2_plan_experiment first")
    plans_manager = PlansManager(str(plans_file))
    configuration_manager = plans_manager.get_configuration(configuration_name)
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
    files = training_files(raw, dataset_json)
    target = preprocessed / configuration_manager.data_identifier
    state = {"type": type(preprocessor).__name__, "of": _digest(plans_manager.plans, dataset_json, files)}
    with leased(preprocessed, target.name) as waited:
        if waited and target.is_dir() and _read_state(_made_of(target)) == state:  # by whom we waited for
            return
        arguments = plans_manager, configuration_manager, dataset_json
        _preprocess(preprocessor, num_processes, files, target, state, arguments)


def _preprocess(
    preprocessor: DefaultPreprocessor,
    num_processes: int,
    files: Mapping[str, Mapping[str, Any]],
    target: Path,
    state: Mapping[str, Any],
    arguments: tuple[Any, ...],
) -> None:
    """Preprocess cases into the folder ``building``, which becomes ``target``; see :func:`preprocess_dataset`."""
    preprocessed, building = target.parent, target.with_name(f"{PARTIAL_PREFIX}{target.name}")
    _begin(target, building, state)
    todo = [
        _Case(name, list(paths["images"]), paths["label"])
        for name, paths in files.items()
        if not (building / f"{name}{_LAST_FILE}").is_file()
    ]
    save = partial(
        _save_case,
        preprocessor=preprocessor,
        folder=building,
        arguments=arguments,
    )
    try:
        run_cases(save, todo, num_processes, "Preprocessing cases", getattr(preprocessor, "show_progress_bar", True))
        _copy_label_maps(files, preprocessed / "gt_segmentations", arguments[2]["file_ending"])
    except Exception:
        explain_unwritable(preprocessed, "The cases preprocessed so far are kept: repeat the command to go on")
        raise
    sync_disks()  # the folder's name says that all is there: after a power failure, too
    os.replace(building / _STATE_FILE, _made_of(target))
    building.rename(target)


def _made_of(target: Path) -> Path:
    """File that tells what a complete folder was made of: beside it, as nnU-Net wants to find cases alone in it."""
    return target.with_name(f".{target.name}-{_STATE_FILE.removesuffix('_in_progress.json')}.json")


def _read_state(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _begin(target: Path, building: Path, state: Mapping[str, Any]) -> None:
    """Make the folder to write to, or clear up an interrupted run in it. What is there of earlier plans goes.

    An earlier run that was killed at its very end left a complete folder without a state: it is done again.
    """
    if target.exists():
        shutil.rmtree(target)  # not of these plans: a training must not find it
    if _read_state(building / _STATE_FILE) != state:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_json_atomic(building / _STATE_FILE, state)
    remove_partial_files(building)


def _digest(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """Of everything that preprocessing depends on; source files by size and time."""
    digest = hashlib.sha256(json.dumps([plans, dataset_json], sort_keys=True).encode())
    for case, paths in files.items():
        for path in (*paths["images"], paths["label"]):
            status = os.stat(path)
            digest.update(f"{case} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _save_case(case: _Case, preprocessor: DefaultPreprocessor, folder: Path, arguments: tuple[Any, ...]) -> None:
    """Preprocess a case; the last of its files appears when all are complete."""
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder) as temporary:
        preprocessor.run_case_save(str(Path(temporary) / case.name), case.images, case.label, *arguments)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.suffix == _LAST_FILE):
            os.replace(file, folder / file.name)


def _copy_label_maps(files: Mapping[str, Mapping[str, Any]], folder: Path, file_ending: str) -> None:
    """As nnU-Net does afterwards, which takes half a copy for an up-to-date one: it looks at the time only."""
    folder.mkdir(exist_ok=True)
    remove_partial_files(folder)
    for case, paths in files.items():
        source, target = Path(paths["label"]), folder / f"{case}{file_ending}"
        status = source.stat()
        if target.is_file():
            found = target.stat()
            if (found.st_size, found.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
                continue
        copy_atomic(source, target)
