"""An epoch of the papers is one pass over the images; how long a training will be."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_training import TinyDataset, write_preprocessed

from braintum.trainers import expectations
from braintum.trainers.data.passes import CasesInPasses
from braintum.trainers.expectations import DurationEstimate
from braintum.trainers.recipes.recipe import RECIPES

# images in training, and what the papers' own counts and tables make of them
FULL_LENGTH = [
    ("BrainTumNet", 378 * 4 // 5 * 20, 16, 94_500),  # five-fold cross-validation of 378 cases with 20 slices each
    ("ResSELKA", 163 * 155, 8, 158_000),  # all axial slices of BraTS
    ("ResidualUNet", 2451, 32, 2_310),
    ("FTCNN", 2451, 64, 3_900),
    ("Br35H", 500, 50, 1_000),
]


@pytest.mark.parametrize(("recipe", "images", "batch_size", "updates"), FULL_LENGTH)
def test_updates_at_full_length_are_the_papers(recipe: str, images: int, batch_size: int, updates: int) -> None:
    plans = RECIPES[recipe].plans
    assert plans is not None and plans.batch_size == batch_size and RECIPES[recipe].epoch == "pass"
    assert RECIPES[recipe].num_epochs * -(-images // batch_size) == pytest.approx(updates, rel=0.005)


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_seed", "1")
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def log_of(trainer: Any) -> str:
    with open(trainer.log_file, encoding="utf-8") as file:
        return " ".join(file.read().split())


def test_a_pass_takes_each_image_once_under_a_seed(dataset: TinyDataset) -> None:
    trainer = dataset.trainer("nnUNetTrainerUNet")
    trainer.on_train_start()
    batch_size = trainer.batch_size
    assert trainer.num_iterations_per_epoch == trainer.num_val_iterations_per_epoch == -(-4 // batch_size)
    epochs = 3
    orders = []
    for _ in range(epochs):
        batches = [next(trainer.dataloader_train)["keys"] for _ in range(trainer.num_iterations_per_epoch)]
        orders.append([str(key) for batch in batches for key in batch])
    training, _ = trainer.do_split()
    assert all(set(order) == set(training) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    updates = trainer.num_epochs * trainer.num_iterations_per_epoch
    in_all = f"{updates} updates with batches of {batch_size}: {updates * batch_size} images"
    assert f"Training will make {in_all}" in log_of(trainer)
    assert f"{trainer.num_epochs} epochs of {trainer.num_iterations_per_epoch} updates" in log_of(trainer)


@pytest.mark.parametrize("name", ["nnUNetTrainerMultiTask", "nnUNetTrainerPlansNetwork"])
def test_our_own_and_nnunets_keep_250_iterations(dataset: TinyDataset, name: str) -> None:
    trainer = dataset.trainer(name)
    trainer.on_train_start()
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (250, 50)
    assert "Training will make 250000 updates" in log_of(trainer)


def test_what_the_user_asks_for_comes_first(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "10")
    trainer = dataset.trainer("nnUNetTrainerUNet")
    trainer.on_train_start()
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (10, 2)


def test_slices_of_volumes_count_in_2d_and_cases_in_3d(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = write_preprocessed(nnunet_folders.preprocessed, "3d_fullres").trainer("nnUNetTrainerUNet")
    training, _ = trainer.do_split()
    assert trainer.num_images(training) == 4
    slices = trainer.shape_of(training[0])[0]
    monkeypatch.setattr(type(trainer.configuration_manager), "patch_size", [16, 16])
    assert trainer.num_images(training) == 4 * slices > 4


def test_cases_in_passes() -> None:
    np.random.seed(0)
    cases = [f"case_{number}" for number in range(10)]
    draw = CasesInPasses(cases, 4)
    drawn = [draw().tolist() for _ in range(5)]
    assert Counter(sum(drawn, [])) == dict.fromkeys(cases, 2)
    assert all(len(set(batch)) == 4 for batch in drawn[:2])

    def from_batch(first: int) -> list[list[str]]:
        np.random.seed(3)
        draw.begin(first)
        return [draw().tolist() for _ in range(4 - first)]

    assert from_batch(2) == from_batch(0)[2:]


def test_duration_is_said_once_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0.0, 1000.0, 20.0))
    monkeypatch.setattr(expectations, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    said: list[str] = []
    estimate = DurationEstimate(720, said.append)
    for _ in range(4):
        estimate()
    assert said == ["An update takes 20.00 s: about 4.0 h for 720 of them; validation after each epoch comes on top"]
    estimate()
    assert len(said) == 1
