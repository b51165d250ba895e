"""Trainers of networks of others, the networks made small: from plans to a checkpoint, masks and classes."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_baselines import TINY
from tiny_training import TinyDataset, save_model, write_images, write_preprocessed
from trainer_steps import one_epoch, start, weights

import braintum as bt
from braintum.trainers import registered
from braintum.trainers.baselines import BASELINES, COMPARED


@pytest.fixture
def folders(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """nnU-Net's folders; seeded training without worker processes, two iterations an epoch."""
    for name, value in (
        *(("nnUNet_n_proc_DA", "0"), ("braintum_num_iterations_per_epoch", "2"), ("braintum_seed", "5")),
    ):
        monkeypatch.setenv(name, value)
    return nnunet_folders


def dataset_of(folders: Any, name: str, configuration: str = "2d") -> TinyDataset:
    """A tiny data set whose plans make a network small."""
    dataset = write_preprocessed(folders.preprocessed, configuration)
    plans: Any = dict(dataset.plans)
    architecture = plans["configurations"][configuration]["architecture"]
    architecture["arch_kwargs"] = {**architecture["arch_kwargs"], **TINY[name]}
    return replace(dataset, plans=plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("suffix", ["", "MultiTask"])
def test_trains(name: str, suffix: str, folders: Any) -> None:
    trainer = start(dataset_of(folders, name).trainer(f"nnUNetTrainer{name}{suffix}"))
    assert hasattr(trainer.bare_network, "classification_head") == bool(suffix)
    before = weights(trainer)
    one_epoch(trainer)
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    assert any(not torch.equal(tensor, before[key]) for key, tensor in weights(trainer).items())
    parameters = trainer.bare_network.named_parameters()
    assert [key for key, parameter in parameters if parameter.requires_grad and parameter.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "configuration"), [("TransUNetMultiTask", "2d"), ("MedNeXt", "3d_fullres")])
def test_predicts_and_explains(name: str, configuration: str, folders: Any, tmp_path: Any) -> None:
    dataset = dataset_of(folders, name.removesuffix("MultiTask"), configuration)
    model = save_model(dataset, f"nnUNetTrainer{name}", (0,), "checkpoint_final.pth")
    images = write_images(tmp_path / "images", (40, 36) if configuration == "2d" else (8, 20, 18), 1)
    predictor = bt.load_predictor(model, device="cpu", mirroring=False)
    found = bt.predict(images / "case_0_0000.nii.gz", predictor)
    assert found.mask.any() and bool(found.class_probabilities) == name.endswith("MultiTask")
    for mask in {True, not found.class_probabilities}:
        explained = bt.explain(images, tmp_path / f"{mask}", predictor, mask=mask, controls=False, show_progress=False)
        assert explained.failed == {} and explained.rows[0]["predicted_mask_share"] > 0


def test_listed_and_found_in_other_processes() -> None:
    for name in BASELINES:
        trainer = getattr(registered, f"nnUNetTrainer{name}MultiTask")
        assert pickle.loads(pickle.dumps(trainer)) is trainer and trainer.__name__ in registered.__all__
        assert bool(trainer.papers) == (name in COMPARED)
