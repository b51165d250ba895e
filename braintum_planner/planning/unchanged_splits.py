"""Whether the splits that models were trained with are still those of the raw data."""

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
