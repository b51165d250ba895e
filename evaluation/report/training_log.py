"""What a trainer logged epoch by epoch, read from its checkpoint without running anything in it."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""The longest log first."""


_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError)
"""What loading and reading a file raises that is no checkpoint."""


@dataclass(frozen=True)
class TrainingLog:
    """The log of one fold.

    Attributes:
        file: the checkpoint that it was read from.
        curves: name as in nnU-Net's logger → one value an epoch; NaN where none was measured.
        seconds: of all epochs together.
    """

    file: Path
    curves: dict[str, np.ndarray]
    seconds: float

    @property
    def num_epochs(self) -> int:
        """Epochs that were trained."""
        return len(next(iter(self.curves.values()), ()))


def read_training_log(fold_folder: Path) -> TrainingLog | None:
    """The log of a fold, from its final checkpoint, or from an earlier one if there is none.

    Only the log is read: the weights stay on the disk (memory-mapped), and torch's weights-only loader restores no
    object that could run code.

    Args:
        fold_folder: ``TRAINER__PLANS__CONFIGURATION/fold_X``.

    Returns:
        None if the fold has no checkpoint, as in a folder from which the weights were removed.

    Raises:
        ValueError: the checkpoint is damaged, not nnU-Net's, or would run code.
    """
    file = next((fold_folder / name for name in CHECKPOINTS if (fold_folder / name).is_file()), None)
    if file is None:
        return None
    import torch  # takes seconds, and an evaluation without checkpoints does not need it

    from braintum.architectures.numpy_scalars import numpy_scalars_allowed

    try:
        with numpy_scalars_allowed():
            log = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["logging"]
        curves = {name: _curve(values) for name, values in log.items() if not name.endswith("_timestamps")}
        starts, ends = (log[f"epoch_{which}_timestamps"] for which in ("start", "end"))
        seconds = float(sum(end - start for start, end in zip(starts, ends, strict=False)))
    except _DAMAGED as error:
        raise ValueError(
            f"{file} is damaged, is no checkpoint of nnU-Net, or holds code; copy it again, or take it from somebody "
            f"you trust ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    return TrainingLog(file, {name: values for name, values in curves.items() if values.ndim == 1}, seconds)


def _curve(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
