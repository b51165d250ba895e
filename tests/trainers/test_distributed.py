"""A training on two ranks (gloo, two CPU processes): class labels, metrics over both, and one validation."""

import csv
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from crash_tools import start, wait
from nnunet_runs import make_trainer, plan_and_preprocess, threads_for_processes, write_dataset
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from braintum.inference.models.checkpoints import load_checkpoint_safely

LOGGED = ("train_losses", "val_losses", "mean_fg_dice", "class_accuracy", "class_macro_f1", "ema_joint_score")


def trainer_on_cpu(plans: str) -> Any:
    """As nnU-Net makes it; its distributed training knows CUDA devices only."""
    trainer = make_trainer(7, plans)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.initialize()
    return trainer


def train(rank: int, plans: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with (
        patch.object(stock_module, "DDP", lambda network, device_ids: DistributedDataParallel(network)),
        threads_for_processes(),
    ):
        trainer = trainer_on_cpu(plans)
        seen, step = [], trainer.train_step
        trainer.train_step = lambda batch: seen.append([str(key) for key in batch["keys"]]) or step(batch)
        trainer.run_training()
        logged = {key: trainer.logger.get_value(key, step=None) for key in LOGGED}
        weights = sum(float(parameter.double().sum()) for parameter in trainer.bare_network.parameters())
        trainer.perform_actual_validation()
    (folder / f"{rank}.json").write_text(json.dumps({"seen": seen, "logged": logged, "weights": weights}))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="two processes from this one")
def test_two_ranks(nnunet_folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"num_epochs": 2, "num_iterations_per_epoch": 3, "seed": 1}.items():
        monkeypatch.setenv(f"braintum_{name}", str(value))
    write_dataset(nnunet_folders.raw, 7)
    plans = plan_and_preprocess(7)
    ranks = [start(partial(train, rank, plans, tmp_path)) for rank in (0, 1)]
    assert [wait(rank) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["logged"] == second["logged"] and np.isfinite(first["logged"]["class_macro_f1"]).all()
    assert first["seen"] != second["seen"]
    batch = json.loads((nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plans}.json").read_text())
    batch_size = batch["configurations"]["2d"]["batch_size"]
    assert [len(a + b) for a, b in zip(first["seen"], second["seen"], strict=True)] == [batch_size] * 6
    fold = next(nnunet_folders.results.glob("Dataset007_Tiny/nnUNetTrainerMultiTask__*/fold_0"))
    validation = fold / "validation"
    summary, rows = json.loads((validation / "summary.json").read_text()), read_rows(validation / "classes.csv")
    assert [row["case"] for row in rows] == [f"case_{number:02d}" for number in range(4)]
    assert load_checkpoint_safely(fold / "checkpoint_final.pth")["current_epoch"] == 2

    shutil.rmtree(validation)  # one rank validates the same weights
    alone = trainer_on_cpu(plans)
    alone.load_checkpoint(str(fold / "checkpoint_final.pth"))
    with threads_for_processes():
        alone.perform_actual_validation()
    assert json.loads((validation / "summary.json").read_text())["mean"] == summary["mean"]
    assert read_rows(validation / "classes.csv") == rows


def read_rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
