"""Settings, schedule, seeded batches and the logger."""

import os
import random
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from braintum.trainers.classes.progress import CLASS_KEYS, MultiTaskLogger
from braintum.trainers.data.seeded_batches import seed_everything, seeded_batches
from braintum.trainers.recipes.schedule import PerGroupLR, PolynomialDecay
from braintum.trainers.recipes.settings import TrainingSettings


def test_settings_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("braintum_num_epochs", "braintum_num_iterations_per_epoch", "braintum_seed"):
        monkeypatch.delenv(name, raising=False)
    assert TrainingSettings.from_environment() == TrainingSettings(None, None, None)
    monkeypatch.setenv("braintum_num_epochs", "7")
    monkeypatch.setenv("braintum_seed", "0")
    assert TrainingSettings.from_environment() == TrainingSettings(7, None, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("braintum_num_epochs", "0"), ("braintum_seed", "-1"), ("braintum_seed", "x"), ("braintum_seed", "1.5")],
)
def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}.*whole number.*{value}"):
        TrainingSettings.from_environment()


@pytest.mark.parametrize("value", ["0", "-0.5", "nan", "inf", "much"])
def test_weights_are_numbers_above_0(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("braintum_mask_supervision", "0.5")
    assert TrainingSettings.from_environment() == TrainingSettings(mask_supervision=0.5)
    monkeypatch.setenv("braintum_mask_supervision", value)
    with pytest.raises(ValueError, match=f"braintum_mask_supervision takes a number above 0, got '{value}'"):
        TrainingSettings.from_environment()


def test_settings_given_replace_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_seed", "5")
    monkeypatch.setenv("braintum_augmentation", "cpu")
    before = dict(os.environ)
    given = TrainingSettings(num_epochs=7, num_iterations_per_epoch=3, task_balancing="pcgrad", permuted_labels=0)
    for settings in (given, TrainingSettings(), TrainingSettings(seed=0, mask_supervision=0.25)):
        with settings.in_environment():
            assert TrainingSettings.from_environment() == settings
        assert dict(os.environ) == before
    with (
        pytest.raises(ValueError, match="braintum_deterministic=1 needs a seed"),
        TrainingSettings(deterministic=True).in_environment(),
    ):
        raise AssertionError("not reached")
    assert dict(os.environ) == before


def test_schedule_per_group() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.02}]
    optimizer = torch.optim.SGD(groups)
    schedule = PerGroupLR(optimizer, num_epochs=10, warmup_epochs=[0, 3], decay=PolynomialDecay())
    schedule.step(0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.02 / 4])
    schedule.step(5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * 0.5**0.9, 0.02 * 0.5**0.9])


class RandomLoader:
    """Like nnU-Net's loader: draws from numpy and torch."""

    def __init__(self) -> None:
        self.blur = GaussianBlurTransform(benchmark=True)
        self.transforms = ComposeTransforms([RandomTransform(self.blur)])

    def generate_train_batch(self) -> dict[str, Any]:
        return {"data": torch.rand(3) + float(np.random.rand()), "keys": np.array(["a", "b"])}


def draw(first_epoch: int, number: int, num_processes: int, seed: int = 5, stream: int = 0) -> list[torch.Tensor]:
    batches = seeded_batches(RandomLoader(), seed, stream, first_epoch, 3, num_processes, pin_memory=False)
    return [next(batches)["data"] for _ in range(number)]


def test_batches_depend_on_seed_epoch_and_index_alone() -> None:
    reference = torch.stack(draw(0, 9, num_processes=0))
    assert len(reference.unique(dim=0)) == 9
    torch.testing.assert_close(torch.stack(draw(0, 9, num_processes=2)), reference, rtol=0, atol=0)
    torch.testing.assert_close(torch.stack(draw(2, 3, num_processes=1)), reference[6:], rtol=0, atol=0)
    assert not torch.equal(torch.stack(draw(0, 9, 0, seed=6)), reference)
    assert not torch.equal(torch.stack(draw(0, 9, 0, stream=1)), reference)


def test_batches_made_in_this_process_leave_its_generators_alone() -> None:
    def own_numbers() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    batches = seeded_batches(RandomLoader(), 5, 0, 0, 3, num_processes=0, pin_memory=False)
    seed_everything(3)
    expected = own_numbers()
    seed_everything(3)
    next(batches)
    assert own_numbers() == expected


def test_seeded_batches_switch_the_stopwatch_in_the_blur_off() -> None:
    loader = RandomLoader()
    next(seeded_batches(loader, 0, 0, 0, 1, 0, pin_memory=False))
    assert loader.blur.benchmark is False


def fill(logger: LocalLogger, epochs: int) -> None:
    for epoch in range(epochs):
        for key in logger.my_fantastic_logging:
            if len(logger.my_fantastic_logging[key]) == epoch:
                logger.log(key, [0.5] if key == "dice_per_class_or_region" else 0.5 + epoch, epoch)


@pytest.mark.slow
def test_logger_takes_a_stock_log_and_goes_on(tmp_path: Path) -> None:
    stock, ours = LocalLogger(), MultiTaskLogger()
    fill(stock, 2)
    ours.load_checkpoint(stock.get_checkpoint())
    assert all(len(ours.get_value(key, None)) == 2 and np.isnan(ours.get_value(key, 1)) for key in CLASS_KEYS)
    fill(ours, 3)
    stock.plot_progress_png(str(tmp_path))
    stock_height = matplotlib.image.imread(tmp_path / "progress.png").shape[0]
    ours.plot_progress_png(str(tmp_path))
    picture = matplotlib.image.imread(tmp_path / "progress.png")
    assert picture.shape[0] > stock_height + 1000
    assert picture[stock_height:, :, :3].std() > 0.05  # something is drawn below the stock plot
