"""Batches that are augmented on the training device, in trainers: against those of nnU-Net's workers."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from tiny_training import write_preprocessed

from braintum.trainers.data.device_batches import AugmentedBatches, DeviceLoader
from braintum.trainers.recipes.settings import TrainingSettings


@pytest.mark.parametrize(("value", "expected"), [(None, "default"), ("gpu", "gpu"), ("cpu", "cpu")])
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: str) -> None:
    monkeypatch.delenv("braintum_augmentation", raising=False)
    if value:
        monkeypatch.setenv("braintum_augmentation", value)
    assert TrainingSettings.from_environment().augmentation == expected


def test_bad_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_augmentation", "cuda")
    with pytest.raises(ValueError, match="braintum_augmentation.*default, gpu, cpu.*cuda"):
        TrainingSettings.from_environment()


@pytest.fixture
def on_device(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_augmentation", "gpu")
    return nnunet_folders


class OwnNoise(GaussianNoiseTransform):
    pass


def loaders(trainer: Any) -> tuple[Any, Any]:
    trainer.initialize()
    return trainer.get_dataloaders()


@pytest.mark.parametrize(
    ("name", "configuration", "labels"),
    [
        ("nnUNetTrainerMultiTask", "2d", None),
        ("nnUNetTrainerMultiTask", "3d_fullres", {"background": 0, "tumour": 1, "ignore": 2}),
        ("nnUNetTrainerMultiTask", "3d_fullres", {"background": 0, "whole": [1, 2], "ignore": 3}),
        ("nnUNetTrainerResSELKAMultiTask", "2d", None),
        ("nnUNetTrainerUNet", "3d_fullres", None),
    ],
)
def test_trainers_get_the_batches_that_workers_would_make(
    on_device: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str, labels: Any
) -> None:
    dataset = write_preprocessed(on_device.preprocessed, configuration, labels=labels)
    ours = loaders(dataset.trainer(name))
    monkeypatch.setenv("braintum_augmentation", "cpu")
    stock = loaders(dataset.trainer(name))
    for made, reference in zip(ours, stock, strict=True):
        assert isinstance(made, AugmentedBatches) and not isinstance(reference, AugmentedBatches)
        batch, expected = next(made), next(reference)
        assert batch.keys() == expected.keys() and batch["keys"].shape == expected["keys"].shape
        assert batch["data"].shape == expected["data"].shape and batch["data"].dtype == expected["data"].dtype
        targets, references = (
            one["target"] if isinstance(one["target"], list) else [one["target"]] for one in (batch, expected)
        )
        assert type(batch["target"]) is type(expected["target"])
        for target, wanted in zip(targets, references, strict=True):
            assert target.shape == wanted.shape and target.dtype == wanted.dtype and target.min() >= 0


def test_validation_batches_are_stocks(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_preprocessed(on_device.preprocessed, "2d")
    made = []
    for where in ("gpu", "cpu"):
        monkeypatch.setenv("braintum_augmentation", where)
        _, validation = loaders(dataset.trainer("nnUNetTrainerMultiTask"))
        loader = validation.batches if where == "gpu" else validation
        drawn = np.random.randint
        np.random.seed(7)
        if where == "cpu":
            drawn(np.iinfo(np.int64).max, dtype=np.int64)  # what ours seeds its parameters with
        made.append(next(validation))
        assert (type(loader.data_loader).__mro__.count(DeviceLoader) == 1) == (where == "gpu")
    assert made[0]["keys"].tolist() == made[1]["keys"].tolist()
    assert torch.equal(made[0]["data"], made[1]["data"])
    assert all(torch.equal(one, other) for one, other in zip(made[0]["target"], made[1]["target"], strict=True))


def test_seeded_batches_depend_on_seed_epoch_and_index_alone(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_seed", "3")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    dataset = write_preprocessed(on_device.preprocessed, "2d")

    def batches(first_epoch: int, number: int, workers: str = "0") -> list[dict]:
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
        trainer = dataset.trainer("nnUNetTrainerMultiTask")
        trainer.current_epoch = first_epoch
        torch.manual_seed(first_epoch + number)  # of no influence
        training, _ = loaders(trainer)
        return [next(training) for _ in range(number)]

    whole, again, resumed = batches(0, 6), batches(0, 6, workers="1"), batches(2, 2)
    for one, other in [*zip(whole, again, strict=True), *zip(whole[4:], resumed, strict=True)]:
        assert one["keys"].tolist() == other["keys"].tolist() and torch.equal(one["data"], other["data"])
        assert torch.equal(one["target"][0], other["target"][0])
    assert not torch.equal(whole[0]["data"], whole[1]["data"])


@pytest.mark.slow
def test_a_trainer_trains_on_the_device(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_num_epochs", "1")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # workers of their own, which have to end
    trainer = write_preprocessed(on_device.preprocessed, "2d").trainer("nnUNetTrainerMultiTask")
    monkeypatch.setattr(trainer, "plot_network_architecture", lambda: None)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    assert np.isfinite(trainer.logger.get_value("val_losses", step=-1))
    workers = trainer.dataloader_train._processes + trainer.dataloader_val._processes
    assert not any(worker.is_alive() for worker in workers)


def test_a_changed_augmentation_keeps_its_meaning(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_preprocessed(on_device.preprocessed, "2d")
    trainer = dataset.trainer("nnUNetTrainerMultiTask")

    def brighter(*args: Any, **kwargs: Any) -> ComposeTransforms:
        return ComposeTransforms(
            [SpatialTransform((32, 32), 0, False), MultiplicativeBrightnessTransform(1000.0, True)]
        )

    monkeypatch.setattr(trainer, "get_training_transforms", brighter)
    training, _ = loaders(trainer)
    assert next(training)["data"].abs().max() > 100
    monkeypatch.setattr(trainer, "get_training_transforms", lambda *args, **kwargs: OwnNoise())
    with pytest.raises(NotImplementedError, match="OwnNoise"):
        trainer.get_dataloaders()


def test_loaders_can_be_sent_to_spawned_workers(on_device: Any) -> None:
    training, _ = loaders(write_preprocessed(on_device.preprocessed, "2d").trainer("nnUNetTrainerMultiTask"))
    copied = pickle.loads(pickle.dumps(training.batches.data_loader))
    batch = copied.generate_train_batch()
    assert len(batch["keys"]) == 2 and len(batch["steps"]) == len(training.augmentation.steps)
