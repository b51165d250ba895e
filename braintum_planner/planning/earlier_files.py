"""What earlier planning and conversion left: splits and plans that planning must not change behind a model's back."""

import json
from pathlib import Path


def check_splits_unchanged(raw_folder: Path, preprocessed_folder: Path) -> None:
    """nnU-Net stops with a bare AssertionError where the raw splits changed since they were copied.

    Args:
        raw_folder: of the data set.
        preprocessed_folder: of the data set.

    Raises:
        ValueError: naming both files and what to do.
    """
    raw, preprocessed = raw_folder / "splits_final.json", preprocessed_folder / "splits_final.json"
    if not (raw.is_file() and preprocessed.is_file()):
        return

    def folds(file: Path) -> list[tuple[set[str], set[str]]]:
        return [(set(fold["train"]), set(fold["val"])) for fold in json.loads(file.read_text(encoding="utf-8"))]

    expected = folds(raw)
    if folds(preprocessed)[: len(expected)] != expected:
        raise ValueError(
            f"{raw} differs from {preprocessed}, which models may have been trained with; delete the latter to train "
            "with the new splits, or restore the former"
        )


def check_plans_are_of(planner: str, plans_file: Path) -> None:
    """Plans of one name have one planner: those of another are not replaced.

    Args:
        planner: class name of the planner that is going to write.
        plans_file: that it is going to write.

    Raises:
        ValueError: the file was written by another planner.
    """
    if not plans_file.is_file():
        return
    written_by = json.loads(plans_file.read_text(encoding="utf-8")).get("experiment_planner_used")
    if written_by != planner:
        raise ValueError(
            f"{plans_file} was written by {written_by}; give {planner}'s plans another name with "
            "-overwrite_plans_name, or delete that file"
        )
