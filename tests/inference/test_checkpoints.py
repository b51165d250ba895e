"""Checkpoints are read without running what is in them."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braintum.architectures.weights.store import InstalledWeights, read_weights
from braintum.evaluation.calibration.calibration import checkpoint_fingerprints
from braintum.evaluation.report.training_log import read_training_log
from braintum.inference.models.checkpoints import load_checkpoint_safely, to_builtin

CHECKPOINT = {
    "network_weights": {"w": torch.ones(2)},
    "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "2d"},
}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def save(folder: Path, content: Any) -> Path:
    file = folder / "checkpoint_final.pth"
    torch.save(content, file)
    return file


def as_numpy_1_writes(file: Path) -> Path:
    """The same checkpoint, numpy's scalars named as numpy 1 names them."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return file


def test_checkpoint_with_scalars_of_numpy_1_loads_wherever_one_is_read(tmp_path: Path) -> None:
    scalars = [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.uint8(3), np.bool_(True)]
    log = {"mean_fg_dice": scalars, "epoch_start_timestamps": scalars[:1], "epoch_end_timestamps": scalars[:1]}
    fold = tmp_path / "fold_0"
    fold.mkdir()
    file = as_numpy_1_writes(save(fold, {**CHECKPOINT, "_best_ema": np.float64(0.25), "logging": log}))
    assert b"cnumpy.core.multiarray\n" in file.read_bytes() and b"numpy._core" not in file.read_bytes()
    assert load_checkpoint_safely(file)["_best_ema"] == 0.25
    assert load_checkpoint_safely(file)["logging"]["mean_fg_dice"] == scalars
    assert read_training_log(fold).curves["mean_fg_dice"].tolist() == [0.5, 0.5, 0.5, 3, 3, 1]
    assert list(checkpoint_fingerprints(tmp_path, [0], file.name)) == ["0"]
    assert list(read_weights(InstalledWeights("own", "", "", "", "", file))) == ["w"]


def test_other_functions_of_numpy_1_are_refused(tmp_path: Path) -> None:
    file = as_numpy_1_writes(save(tmp_path, {**CHECKPOINT, "logging": np.arange(2)}))
    with pytest.raises(ValueError, match="would run code.*numpy.core.multiarray._reconstruct"):
        load_checkpoint_safely(file)


def test_stock_checkpoint_with_numpy_scalars_loads(tmp_path: Path) -> None:
    scalars = [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)]
    file = save(tmp_path, {**CHECKPOINT, "logging": {"mean_fg_dice": scalars}, "device": torch.device("cuda")})
    assert load_checkpoint_safely(file)["logging"]["mean_fg_dice"] == scalars


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made by the checkpoint"
    file = save(tmp_path, {**CHECKPOINT, "logging": Payload(target)})
    with pytest.raises(ValueError, match="checkpoint_final.pth would run code.*mkdir"):
        load_checkpoint_safely(file)
    assert not target.exists()


def test_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    file.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="damaged or truncated, or no checkpoint"):
        load_checkpoint_safely(file)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_checkpoint(tmp_path: Path, keep: float) -> None:
    file = save(tmp_path, CHECKPOINT)
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="checkpoint_final.pth is damaged or truncated.*copy it again"):
        load_checkpoint_safely(file)


def test_damaged_text_in_a_checkpoint(tmp_path: Path) -> None:
    file = save(tmp_path, {**CHECKPOINT, "note": "a text that is there once"})
    file.write_bytes(file.read_bytes().replace(b"a text that is there once", b"\xff text that is there once"))
    with pytest.raises(ValueError, match="checkpoint_final.pth is damaged or truncated"):
        load_checkpoint_safely(file)


def test_something_else_than_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint of nnU-Net: it lacks init_args, network_weights"):
        load_checkpoint_safely(save(tmp_path, {"trainer_name": "x"}))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint_safely(tmp_path / "absent.pth")


def test_to_builtin() -> None:
    log = {"a": [np.float32(0.5), [np.int64(2)]], "b": (np.float64(1.0), "x"), "c": np.arange(2), "d": None}
    assert to_builtin(log) is log
    assert log == {"a": [0.5, [2]], "b": (1.0, "x"), "c": [0, 1], "d": None}
    assert {type(value) for value in (log["a"][0], log["a"][1][0], log["b"][0])} == {float, int}
