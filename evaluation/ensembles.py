"""Ensembles of models: voxel and class probabilities averaged, as nnU-Net averages voxels."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from dataset_conversion.parallel import run_cases
from evaluation.predictions import Predictions


def can_be_ensembled(members: Sequence[Predictions]) -> bool:
    """Whether all members wrote voxel probabilities (``--save_probabilities``; ``--npz`` in training) of every case."""
    return all(_probability_file(mask, member).is_file() for member in members for mask in member.masks.values())


def ensemble(members: Sequence[Predictions], folder: Path, n_processes: int) -> Predictions:
    """Average models that predicted the same cases; masks are written, class probabilities averaged.

    Args:
        members: two or more, see :func:`can_be_ensembled`.
        folder: for the masks; made if need be.
        n_processes: number of processes.
    """
    first = members[0]
    folder.mkdir(parents=True, exist_ok=True)
    label_manager = LabelManager(first.dataset_json["labels"], first.dataset_json.get("regions_class_order"))
    ending = first.dataset_json["file_ending"]
    work = functools.partial(_merge, folder, ending, first.reader_writer, label_manager)
    files = {case: [str(_probability_file(member.masks[case], member)) for member in members] for case in first.masks}
    run_cases(work, list(files.items()), n_processes, "ensemble")
    classes = {}
    if all(member.class_results for member in members):
        for case in first.masks:
            results = [member.class_results[case]["probabilities"] for member in members]
            mean = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
            classes[case] = {"predicted_class": max(mean, key=lambda name: mean[name]), "probabilities": mean}
    return Predictions(
        " + ".join(member.name for member in members),
        {case: folder / f"{case}{ending}" for case in first.masks},
        first.references,
        first.dataset_json,
        classes,
        first.cases,
        first.fold_of_case,
        first.missing,
    )


def _probability_file(mask: Path, member: Predictions) -> Path:
    return mask.with_name(mask.name.removesuffix(member.dataset_json["file_ending"]) + ".npz")


def _merge(
    folder: Path,
    ending: str,
    reader_writer: BaseReaderWriter,
    label_manager: LabelManager,
    case_and_files: tuple[str, list[str]],
) -> None:
    case, files = case_and_files
    merge_files(files, str(folder / case), ending, reader_writer, label_manager)
