"""nnU-Net's search for helpful post-processing, on the merged validation of all folds."""

import shutil
from pathlib import Path

from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

from braintum.evaluation.results.predictions import Predictions, read_json


def collect_masks(predictions: Predictions, model_folder: Path, merged_folder: Path) -> None:
    """Copy the masks of all folds into one folder, as nnU-Net's own tools expect them.

    Args:
        predictions: of the folds.
        model_folder: with ``plans.json`` and ``dataset.json``.
        merged_folder: exists.
    """
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(model_folder / name, merged_folder / name)
    for file in predictions.masks.values():
        shutil.copyfile(file, merged_folder / file.name)


def find_postprocessing(merged_folder: Path, reference_folder: Path, n_processes: int) -> list[str]:
    """Find out whether keeping the largest component only (of the tumour, or of a label) improves Dice.

    Args:
        merged_folder: see :func:`collect_masks`, with ``summary.json``; gets ``postprocessing.json``, which
            ``braintum_postprocess`` takes, and ``postprocessing.pkl``, which ``nnUNetv2_apply_postprocessing`` takes.
        reference_folder: true segmentations.
        n_processes: number of processes.

    Returns:
        A line for each rule that helps.
    """
    determine_postprocessing(
        str(merged_folder),
        str(reference_folder),
        read_json(merged_folder / "plans.json"),
        read_json(merged_folder / "dataset.json"),
        n_processes,
        keep_postprocessed_files=False,
    )
    found = read_json(merged_folder / "postprocessing.json")
    return [
        f"{name}: {arguments['labels_or_regions']}"
        for name, arguments in zip(found["postprocessing_fns"], found["postprocessing_kwargs"], strict=True)
    ]
