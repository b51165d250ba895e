"""Checkpoints in the background: stock's content, complete files, errors that reach the training."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import write_preprocessed

from braintum.inference.models.checkpoints import load_checkpoint_safely
from braintum.trainers.classes.progress import MultiTaskLogger
from braintum.trainers.safety.checkpoint_writer import CheckpointWriter, checkpoint_of, on_cpu


@pytest.fixture
def trainer(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ready to train: two epochs of one iteration."""
    for name, value in (("num_epochs", "2"), ("num_iterations_per_epoch", "1"), ("seed", "1")):
        monkeypatch.setenv(f"braintum_{name}", value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for logger in (LocalLogger, MultiTaskLogger):
        monkeypatch.setattr(logger, "plot_progress_png", lambda self, folder: None)
    return write_preprocessed(nnunet_folders.preprocessed, "2d").trainer("nnUNetTrainerMultiTask")


class Gate:
    """Holds writes back until it is opened, and notes who writes what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_open: bool = False) -> None:
        self.opened = threading.Event()
        self.written: list[tuple[str, str]] = []
        self.fails = False
        self._save = torch.save
        monkeypatch.setattr(torch, "save", self)
        if is_open:
            self.opened.set()

    def __call__(self, content: Any, file: str) -> None:
        self.opened.wait(60)
        self.written.append((Path(file).name.split(".")[0], threading.current_thread().name.split("_")[0]))
        if self.fails:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        self._save(content, file)


def assert_equal(first: Any, second: Any, where: str = "checkpoint") -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, msg=where)
        assert (first.dtype, first.stride()) == (second.dtype, second.stride()), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        assert vars(first) == vars(second) if isinstance(first, OrderedDict) else True, where
        for key in first:
            assert_equal(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, items in enumerate(zip(first, second, strict=True)):
            assert_equal(*items, f"{where}[{index}]")
    else:
        assert first == second, where


def test_content_is_stock_and_of_the_moment(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.initialize()
    trainer.on_train_start()
    trainer.network(torch.randn(2, 1, 32, 32))[0].sum().backward()
    trainer.optimizer.step()  # so that the optimiser has a state
    nnUNetTrainer.save_checkpoint(trainer, str(tmp_path / "stock.pth"))
    gate = Gate(monkeypatch)
    with CheckpointWriter() as trainer.checkpoint_writer:
        trainer.save_checkpoint(str(tmp_path / "ours.pth"))
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.fill_(7)
        trainer.logger.log("train_losses", 3.0, 0)
        assert not (tmp_path / "ours.pth").exists()
        gate.opened.set()
    stock, ours = (load_checkpoint_safely(tmp_path / f"{name}.pth") for name in ("stock", "ours"))
    assert stock["optimizer_state"]["state"] and "_metadata" in vars(ours["network_weights"])
    assert_equal(ours, stock)
    sizes = [(tmp_path / f"{name}.pth").stat().st_size for name in ("stock", "ours")]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0]  # what stock registers twice is there once
    assert gate.written == [("ours", "checkpoints")]


def test_copies_share_what_the_originals_share() -> None:
    whole = torch.arange(12.0)
    content = {
        "row": whole[4:8],
        "column": whole.view(3, 4).t()[1],
        "more": [whole, ("text", None, torch.device("cpu"))],
    }
    copied = on_cpu(content)
    assert_equal(copied, content)
    whole.zero_()
    assert copied["column"].tolist() == [1, 5, 9]
    copied["more"][0][5] = -1
    assert copied["row"].tolist() == [4, -1, 6, 7] and copied["column"].tolist() == [1, -1, 9]
    assert checkpoint_of(lambda filename: None) is None


def test_order_and_superseding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    files = {name: str(tmp_path / f"{name}.pth") for name in ("best", "latest", "joint")}
    with CheckpointWriter() as writer:
        writer.submit({"epoch": 0}, files["best"])  # begins at once
        while not writer._writes[0][1].running():
            assert not writer._writes[0][1].done()
        writer.submit({"epoch": 0}, files["latest"])
        writer.submit({"epoch": 1}, files["latest"])  # in place of the former
        threading.Timer(0.05, gate.opened.set).start()
        writer.submit({"epoch": 1}, files["joint"])  # waits for the first
        assert gate.opened.is_set() and ("best", "checkpoints") in gate.written
    assert [name for name, _ in gate.written] == ["best", "latest", "joint"]
    assert {name: torch.load(file)["epoch"] for name, file in files.items()} == {"best": 0, "latest": 1, "joint": 1}
    assert not list(tmp_path.glob("*.partial"))


def test_errors_reach_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    gate = Gate(monkeypatch, is_open=True)
    gate.fails = True
    file = tmp_path / "best.pth"
    file.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"), CheckpointWriter() as writer:
        writer.submit({}, str(file))
    with CheckpointWriter() as writer:
        writer.submit({}, str(file))
        with pytest.raises(OSError, match="No space left"):
            writer.wait()
        writer.wait()  # it was raised once
        writer.submit({}, str(file))
        while not writer._writes[0][1].done():
            pass
        with pytest.raises(OSError, match="No space left"):
            writer.submit({}, str(file))
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.submit({}, str(file))
        raise KeyboardInterrupt
    assert "a checkpoint could not be written either" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pth"] and file.read_bytes() == b"old"


@pytest.mark.slow
def test_training_writes_in_the_background(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.save_every = 1
    gate = Gate(monkeypatch, is_open=True)
    trainer.run_training()
    names = [name for name, thread in gate.written if thread == "checkpoints"]
    assert "checkpoint_latest" in names and {"checkpoint_best", "checkpoint_best_joint"} <= set(names)
    assert gate.written[-1] == ("checkpoint_final", "MainThread")
    folder = Path(trainer.output_folder)
    assert {file.name for file in folder.glob("*.p*")} >= {"checkpoint_final.pth", "checkpoint_best_joint.pth"}
    assert not list(folder.glob("*.partial")) and not (folder / "checkpoint_latest.pth").exists()
    assert load_checkpoint_safely(folder / "checkpoint_final.pth")["current_epoch"] == 2
    trainer.load_checkpoint(str(folder / "checkpoint_best_joint.pth"))


def test_a_full_disk_ends_the_training(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    gate.fails = True
    on_epoch_end = trainer.on_epoch_end

    def wait_for_the_failure() -> None:
        on_epoch_end()
        gate.opened.set()
        for _, write in trainer.checkpoint_writer._writes:
            write.exception()

    monkeypatch.setattr(trainer, "on_epoch_end", wait_for_the_failure)
    with pytest.raises(OSError, match="No space left"):
        trainer.run_training()
    assert trainer.current_epoch == 1 and trainer.checkpoint_writer is None
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))
