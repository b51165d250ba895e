"""TensorBoard as one of the loggers that nnU-Net's logger feeds: its curves, and pictures of a validation patch.

An extra: ``pip install braintum[tensorboard]``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = "tensorboard"
PICTURE_EVERY = 10
"""Epochs between two pictures."""


class TensorBoardLogger:
    """Has the methods that nnU-Net's ``MetaLogger`` calls.

    Args:
        fold_folder: gets a folder ``tensorboard``.
        first_epoch: of this run; what an earlier one wrote of it and later ones does not count.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, fold_folder: str | Path, first_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "braintum_tensorboard=1 needs TensorBoard: pip install braintum[tensorboard], or unset it"
            ) from error
        self._writer = SummaryWriter(str(Path(fold_folder) / FOLDER), purge_step=first_epoch)

    def update_config(self, config: dict) -> None:
        """Nothing: plans and settings are in files already."""

    def log(self, key: str, value: Any, step: int) -> None:
        """A value of an epoch."""
        if not key.endswith("_timestamps"):
            self._writer.add_scalar(key, float(value), step)
            self._writer.flush()  # whoever kills the training loses nothing

    def log_summary(self, key: str, value: Any) -> None:
        """A figure of the final validation."""
        if isinstance(value, (int, float, np.number)):
            self._writer.add_scalar(f"final/{key}", float(value))
            self._writer.flush()

    def picture(self, image: torch.Tensor, truth: torch.Tensor, predicted: torch.Tensor, step: int) -> None:
        """Image, true and predicted labels side by side.

        Args:
            image: ([Z,] Y, X), any scale.
            truth: labels of the same shape.
            predicted: likewise.
            step: the epoch.
        """
        if image.ndim == 3:
            middle = int((truth > 0).flatten(1).sum(1).argmax())  # the slice with most of the tumour
            image, truth, predicted = image[middle], truth[middle], predicted[middle]
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
        highest = torch.stack([truth.max(), predicted.max()]).max().clamp(min=1).float()
        row = torch.cat([image.float(), truth.float() / highest, predicted.float() / highest], 1)
        self._writer.add_image("image, truth, prediction", row.clamp(0, 1).cpu(), step, dataformats="HW")
        self._writer.flush()
