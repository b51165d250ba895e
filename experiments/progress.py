"""How far a training is, from the log that every trainer of nnU-Net writes."""

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

from braintum.conversion.files.json_files import read_json_object
from braintum.experiments.diagnosis import last_text
from braintum.experiments.jobs import Job

_EPOCH = re.compile(r"Epoch (\d+)\s*$", re.MULTILINE)
_SECONDS = re.compile(r"Epoch time: ([\d.]+) s")
_METRICS = (
    ("loss", re.compile(r"train_loss (-?[\d.]+)")),
    ("val", re.compile(r"val_loss (-?[\d.]+)")),
    ("Dice", re.compile(r"Pseudo dice \[(?:np\.float\d+\()?([\d.nan]+)")),
    ("macro-F1", re.compile(r"macro_f1 ([\d.]+)")),
)


@dataclass(frozen=True)
class Progress:
    """Of a training.

    Attributes:
        epoch: finished ones.
        num_epochs: of the whole training; None where it is unknown.
        seconds: the last epoch took; None before the first has ended.
        metrics: last values, as text.
    """

    epoch: int
    num_epochs: int | None
    seconds: float | None
    metrics: str

    @property
    def seconds_left(self) -> float | None:
        """Until the last epoch, at the speed of the last one."""
        if self.seconds is None or self.num_epochs is None:
            return None
        return self.seconds * (self.num_epochs - self.epoch)


def read_progress(job: Job) -> Progress | None:
    """Progress of a training; None of what is none, or has not begun."""
    if not job.fold_folder:
        return None
    folder = Path(job.fold_folder)
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    text = "".join(last_text(log) for log in logs[-2:])  # one that has just begun tells nothing yet
    epochs = [int(number) for number in _EPOCH.findall(text)]
    if not epochs:
        return None
    tail = text[text.rindex(f"Epoch {epochs[-1]}") :]
    seconds = _SECONDS.findall(text)
    metrics = [f"{name} {found[-1]}" for name, pattern in _METRICS if (found := pattern.findall(text))]
    return Progress(
        epochs[-1] + bool(_SECONDS.search(tail)),
        _num_epochs(folder),
        float(seconds[-1]) if seconds else None,
        ", ".join(metrics),
    )


def _num_epochs(folder: Path) -> int | None:
    """From nnU-Net's ``debug.json``, which holds attributes of the trainer as text."""
    try:
        return int(ast.literal_eval(str(read_json_object(folder / "debug.json")["num_epochs"])))
    except (OSError, ValueError, KeyError, SyntaxError):
        return None


def size_of(folder: str) -> int:
    """Bytes of the files directly in a folder."""
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
