"""Logging of overlap and class metrics through nnU-Net's logger, and of the latter in its ``progress.png``."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
from nnunetv2.training.logging.nnunet_logger import LocalLogger

OVERLAP_KEYS = ("train_dice", "train_iou")
"""What every training logs of the masks, beside nnU-Net's own."""

CLASS_KEYS = (
    "train_class_losses",
    "val_class_losses",
    "class_accuracy",
    "class_balanced_accuracy",
    "class_macro_f1",
    "joint_score",
    "ema_joint_score",
)
"""What is logged of the classes, beside nnU-Net's own."""

_DOTS_PER_INCH = 50
"""nnU-Net's 100 make 16 million pixels, which take seconds to draw after each epoch."""


class OverlapLogger(LocalLogger):
    """nnU-Net's local logger with further keys, one value an epoch: those of :data:`OVERLAP_KEYS`."""

    keys: tuple[str, ...] = OVERLAP_KEYS

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        self._add_keys()

    def load_checkpoint(self, checkpoint: dict) -> None:
        """Restore a log; one of a stock trainer gets NaN for the epochs that it did not measure."""
        super().load_checkpoint(checkpoint)
        self._add_keys()

    def _add_keys(self) -> None:
        epochs = len(self.my_fantastic_logging["epoch_end_timestamps"])
        for key in self.keys:
            self.my_fantastic_logging.setdefault(key, [float("nan")] * epochs)


class MultiTaskLogger(OverlapLogger):
    """The same with the keys of :data:`CLASS_KEYS`."""

    keys = OVERLAP_KEYS + CLASS_KEYS

    def plot_progress_png(self, output_folder: str) -> None:
        """nnU-Net's plot, with the class curves below it in the same picture."""
        with matplotlib.rc_context({"figure.dpi": _DOTS_PER_INCH}):
            super().plot_progress_png(output_folder)
        progress = Path(output_folder) / "progress.png"
        stock = matplotlib.image.imread(progress)
        classes = self._plot_classes(stock.shape[1])
        matplotlib.image.imsave(progress, np.vstack([stock, classes.astype(stock.dtype) / 255]))

    def _plot_classes(self, width: int) -> np.ndarray:
        """Class loss and class metrics over epochs, (height, width, 4) uint8."""
        log = self.my_fantastic_logging
        epochs = min(len(values) for values in log.values())
        figure, (loss_axis, metric_axis) = plt.subplots(2, 1, figsize=(width / _DOTS_PER_INCH, 24), dpi=_DOTS_PER_INCH)
        for key, colour in (("train_class_losses", "b"), ("val_class_losses", "r")):
            loss_axis.plot(log[key][:epochs], color=colour, linewidth=4, label=key.replace("_", " "))
        loss_axis.set_ylabel("class loss")
        for key in ("class_accuracy", "class_balanced_accuracy", "class_macro_f1", "joint_score", "ema_joint_score"):
            metric_axis.plot(log[key][:epochs], linewidth=4, label=key.replace("_", " "))
        metric_axis.set_ylim(0, 1)
        metric_axis.set_ylabel("validation patches")
        for axis in (loss_axis, metric_axis):
            axis.set_xlabel("epoch")
            axis.legend()
        figure.tight_layout()
        figure.canvas.draw()
        image = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        plt.close(figure)
        return image
