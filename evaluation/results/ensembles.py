"""Ensembles of models: voxel and class probabilities averaged, as nnU-Net averages voxels."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.ensembling.ensemble import average_probabilities
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import one_line
from braintum.conversion.files.parallel import run_cases
from braintum.evaluation.results.predictions import Predictions


def can_be_ensembled(members: Sequence[Predictions]) -> bool:
    """Whether all members wrote voxel probabilities (``--save_probabilities``; ``--npz`` in training) of every case."""
    return all(_probability_file(mask, member).is_file() for member in members for mask in member.masks.values())


def ensemble(members: Sequence[Predictions], folder: Path, n_processes: int) -> Predictions:
    """Average models that predicted the same cases; masks are written, class probabilities averaged.

    Args:
        members: two or more, see :func:`can_be_ensembled`.
        folder: for the masks; made if need be.
        n_processes: number of processes.

    Returns:
        The averages, without the cases that cannot be evaluated for one of the members, or whose probabilities cannot
        be read.

    Raises:
        ValueError: no case is left.
    """
    first = members[0]
    folder.mkdir(parents=True, exist_ok=True)
    failed = {case: fault for member in members for case, fault in member.failed.items()}
    for member in members:
        failed |= {case: f"{member.name} did not predict {case}" for case in first.masks.keys() - member.masks.keys()}
    label_manager = LabelManager(first.dataset_json["labels"], first.dataset_json.get("regions_class_order"))
    work = functools.partial(_merge, folder, first.reader_writer, label_manager)
    cases = [case for case in first.masks if case not in failed]
    tasks = [
        (first.masks[case], [str(_probability_file(member.masks[case], member)) for member in members])
        for case in cases
    ]
    faults = run_cases(work, tasks, n_processes, "ensemble")
    failed |= {case: fault for case, fault in zip(cases, faults, strict=True) if fault is not None}
    classes = {}
    if all(member.class_results for member in members):
        for case in cases:
            results = [member.class_results[case]["probabilities"] for member in members]
            mean = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
            classes[case] = {"predicted_class": max(mean, key=lambda name: mean[name]), "probabilities": mean}
    return Predictions(
        " + ".join(member.name for member in members),
        {case: folder / mask.name for case, mask in first.masks.items()},
        first.references,
        first.dataset_json,
        classes,
        first.cases,
        first.fold_of_case,
        first.missing,
    ).without(failed)


def _probability_file(mask: Path, member: Predictions) -> Path:
    return mask.with_name(mask.name.removesuffix(member.dataset_json["file_ending"]) + ".npz")


def _merge(
    folder: Path,
    reader_writer: BaseReaderWriter,
    label_manager: LabelManager,
    mask_and_files: tuple[Path, list[str]],
) -> str | None:
    """Write the mask of a case; what is wrong with its files, or None."""
    mask, files = mask_and_files
    try:
        # not from the .pkl beside it, as nnU-Net does: unpickling could run anything
        _, properties = reader_writer.read_seg(str(mask))
        segmentation = label_manager.convert_probabilities_to_segmentation(average_probabilities(files))
        with atomic_path(folder / mask.name) as partial:
            reader_writer.write_seg(segmentation, str(partial), properties)
    except Exception as error:  # numpy, zipfile and nnU-Net raise errors of many types for damaged files
        fault = f"{' and '.join(files)}: cannot be averaged ({one_line(error)})"
        return f"{fault}; predict again with --save_probabilities"
    return None
