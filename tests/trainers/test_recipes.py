"""Recipes as data, schedules against closed forms, and augmentation."""

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from tiny_training import write_preprocessed
from torch import nn

from braintum.trainers.augmentation.augmentation import Augmentation
from braintum.trainers.losses.losses import (
    bce_dice_loss,
    bce_loss,
    dice_cross_entropy_loss,
    weighted_cross_entropy_tversky_loss,
)
from braintum.trainers.recipes import recipe as recipes
from braintum.trainers.recipes.recipe import Recipe
from braintum.trainers.recipes.schedule import (
    CosineDecay,
    Decay,
    ExponentialDecay,
    PerGroupLR,
    PlateauDecay,
    PolynomialDecay,
    epochs_without_improvement,
)
from braintum.trainers.registered import nnUNetTrainerMultiTask

# ---------------------------------------------------------------------- what the papers say


def optimizer_of(recipe: Recipe) -> torch.optim.Optimizer:
    return recipe.optimizer(
        [nn.Parameter(torch.zeros(1))],
        lr=recipe.body.lr,
        weight_decay=recipe.body.weight_decay,
        **recipe.optimizer_arguments,
    )


@pytest.mark.parametrize(
    ("recipe", "kind", "lr", "weight_decay", "eps", "decay", "num_epochs", "early_stopping"),
    [
        (recipes.MULTI_TASK, torch.optim.AdamW, 1e-3, 0.01, 1e-8, PolynomialDecay(0.9), 1000, None),
        (recipes.BRAINTUMNET, torch.optim.Adam, 1e-4, 0, 1e-8, CosineDecay(), 250, None),
        (recipes.JOINT_UNET, torch.optim.Adam, 1e-4, 0, 1e-8, PlateauDecay(0.5, 7), 100, 15),
        (recipes.RESSE_LKA, torch.optim.AdamW, 1e-4, 0.01, 1e-5, ExponentialDecay(0.01), 50, None),
        (recipes.RESIDUAL_UNET, torch.optim.Adam, 1e-3, 0, 1e-8, PolynomialDecay(0), 30, 15),
        (recipes.FT_CNN, torch.optim.Adam, 1e-3, 0, 1e-8, PolynomialDecay(0), 100, None),
        (recipes.BR35H_UNET, torch.optim.Adam, 1e-4, 0, 1e-8, PolynomialDecay(0), 100, None),
    ],
    ids=["ours", "000", "001", "002", "003 RUNet", "003 FT-CNN", "004"],
)
def test_optimiser_and_length(
    recipe: Recipe,
    kind: type,
    lr: float,
    weight_decay: float,
    eps: float,
    decay: Decay,
    num_epochs: int,
    early_stopping: int | None,
) -> None:
    optimizer = optimizer_of(recipe)
    assert type(optimizer) is kind
    settings = optimizer.defaults
    assert (settings["lr"], settings["weight_decay"], settings["eps"]) == (lr, weight_decay, eps)
    assert settings["betas"] == (0.9, 0.999) and settings["fused"]
    assert (recipe.decay, recipe.num_epochs, recipe.early_stopping) == (decay, num_epochs, early_stopping)


@pytest.mark.parametrize(
    ("recipe", "loss", "supervision", "weights", "smoothing"),
    [
        (recipes.BRAINTUMNET, dice_cross_entropy_loss, (), (1.0, 0.7), 0),
        (recipes.JOINT_UNET, bce_dice_loss, (), (1.0, 1.0), 0),
        (recipes.RESSE_LKA, weighted_cross_entropy_tversky_loss, (1.0, 0.4, 0.3, 0.2), (1.0, 0.7), 0),
        (recipes.RESIDUAL_UNET, bce_loss, (), (1.0, 1.0), 0),
        (recipes.BR35H_UNET, bce_loss, (), (1.0, 1.0), 0),
        (recipes.classifier_recipe(recipes.JOINT_UNET), bce_loss, (), (0.0, 1.0), 0),
    ],
)
def test_losses(
    recipe: Recipe, loss: Any, supervision: tuple[float, ...], weights: tuple[float, float], smoothing: float
) -> None:
    assert recipe.segmentation_loss is not None
    assert recipe.segmentation_loss.build is loss
    assert recipe.segmentation_loss.deep_supervision == supervision
    assert recipe.deep_supervision == bool(supervision)
    assert (recipe.segmentation_weight, recipe.class_weight) == weights
    assert recipe.class_label_smoothing == smoothing


def test_our_recipe_is_nnunets_with_a_head() -> None:
    ours = recipes.MULTI_TASK
    assert ours.segmentation_loss is None and ours.augmentation is None and ours.deep_supervision
    assert (ours.segmentation_weight, ours.class_weight, ours.class_label_smoothing) == (1, 1, 0.1)
    assert ours.head == recipes.ParameterGroup(lr=1e-3, weight_decay=1e-2, warmup=0.02)
    assert nnUNetTrainerMultiTask.recipe is ours


def test_augmentation_of_the_papers() -> None:
    assert recipes.BRAINTUMNET.augmentation == Augmentation(rotation_degrees=30, flips=True)
    joint, lka = recipes.JOINT_UNET.augmentation, recipes.RESSE_LKA.augmentation
    assert joint is not None and joint.rotation_degrees == 15 and joint.flips
    assert lka == Augmentation(
        rotation_degrees=15,
        scaling=(0.85, 1.15),
        crop_margin=0.25,
        noise_sigma=0.1,
        brightness_sigma=0.3,
        gamma=(0.7, 1.5),
    )
    assert lka.initial_patch_size((128, 128), False)[0] >= 160
    without = (recipes.RESIDUAL_UNET, recipes.FT_CNN, recipes.BR35H_UNET)
    assert all(recipe.augmentation == Augmentation() for recipe in without)


def test_nnunets_recipe_is_its_trainers() -> None:
    recipe = recipes.NNUNET
    assert recipe.segmentation_loss is None and recipe.augmentation is None and recipe.epoch == "iterations"
    assert (recipe.decay, recipe.num_epochs) == (PolynomialDecay(0.9), 1000)
    assert (recipe.optimizer, recipe.body) == (torch.optim.SGD, recipes.ParameterGroup(lr=1e-2, weight_decay=3e-5))
    assert recipe.optimizer_arguments == {"momentum": 0.99, "nesterov": True}


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        recipes.BRAINTUMNET.num_epochs = 1  # type: ignore[misc]


# ---------------------------------------------------------------------- schedules


def rates(decay: Decay, num_epochs: int, warmup: int = 0, losses: Sequence[float] = ()) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    past: list[float] = []
    schedule = PerGroupLR(optimizer, num_epochs, [warmup], decay, lambda: past)
    found = []
    for epoch in range(num_epochs):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
        past.extend(losses[epoch : epoch + 1])
    return found


def test_polynomial_decay_is_nnunets() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    stock = PolyLRScheduler(optimizer, 0.2, 20)
    expected = []
    for epoch in range(20):
        stock.step(epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(PolynomialDecay(), 20) == pytest.approx(expected, rel=1e-12)
    assert rates(PolynomialDecay(exponent=0), 20) == [0.2] * 20


def test_cosine_decay_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
    expected = []
    for _ in range(25):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates(CosineDecay(), 25) == pytest.approx(expected, rel=1e-9)
    assert rates(CosineDecay(cycles=2), 50) == pytest.approx(expected * 2, rel=1e-9)


def test_warm_up_and_exponential_decay() -> None:
    found = rates(ExponentialDecay(final=0.01), 50, warmup=5)
    assert found[:6] == pytest.approx([0.2 * step / 6 for step in range(1, 7)])
    assert np.divide(found[6:], found[5:-1]) == pytest.approx(np.full(44, 0.01 ** (1 / 44)))
    assert found[-1] == pytest.approx(0.2 * 0.01)
    assert rates(ExponentialDecay(), 1) == [0.2]  # nothing to decay over


def test_plateau_follows_validation_losses_not_epochs() -> None:
    losses = [5, 4, 4, 4, 4, 3, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1]
    # patience 2: the third epoch without improvement halves the rate, and counting starts again
    expected = [0.2] * 5 + [0.1] * 4 + [0.05] * 3
    assert rates(PlateauDecay(0.5, 2), 12, losses=losses) == pytest.approx(expected)
    assert rates(PlateauDecay(0.5, 2), 12, losses=[1 / (epoch + 1) for epoch in range(12)]) == [0.2] * 12
    for sign in (-1, 0, 1):  # a loss that stays the same is idle, whatever its sign
        assert rates(PlateauDecay(0.5, 7), 40, losses=[0.8 * sign] * 40)[-1] == pytest.approx(0.2 * 0.5**4)
        assert rates(PlateauDecay(0.5, 7), 40, losses=[0.8 * sign - 0.01 * epoch for epoch in range(40)])[-1] == 0.2


def test_plateau_after_a_resume() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    PerGroupLR(optimizer, 100, [0], PlateauDecay(0.5, 1), lambda: [2, 2, 2]).step(3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([], 0), ([1.0], 0), ([3.0, 2.0, 2.0, 2.5], 2), ([1.0, math.nan, math.nan], 2), ([math.nan, 1.0], 0)],
)
def test_epochs_without_improvement(losses: list[float], expected: int) -> None:
    assert epochs_without_improvement(losses) == expected


# ---------------------------------------------------------------------- augmentation


def augment(
    augmentation: Augmentation, patch_size: tuple[int, ...], mirror_axes: Any = None, in_plane_only: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An image that holds its own coordinates, augmented: image and mask before and after."""
    size = augmentation.initial_patch_size(patch_size, in_plane_only)
    coordinates = torch.stack(torch.meshgrid(*[torch.arange(float(edge)) + 1 for edge in size], indexing="ij"))
    mask = (coordinates[-1:] > size[-1] / 2).to(torch.int16)
    transforms = ComposeTransforms(augmentation.transforms(patch_size, mirror_axes, in_plane_only))
    result = transforms(image=coordinates.clone(), segmentation=mask.clone())
    return coordinates, mask, result["image"], result["segmentation"]


@pytest.fixture
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("patch_size", [(16, 12), (8, 16, 12)])
def test_no_augmentation_leaves_the_patch_alone(patch_size: tuple[int, ...]) -> None:
    before, mask, after, mask_after = augment(Augmentation(), patch_size)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(mask_after, mask, rtol=0, atol=0)


def gradients_of(coordinates: torch.Tensor) -> torch.Tensor:
    """Linear map from patch to image coordinates, (dimensions, dimensions), from the patch's centre."""
    centre = tuple(edge // 2 for edge in coordinates.shape[1:])
    columns = []
    for axis in range(coordinates.ndim - 1):
        further = tuple(index + (other == axis) for other, index in enumerate(centre))
        columns.append(coordinates[(slice(None), *further)] - coordinates[(slice(None), *centre)])
    return torch.stack(columns, 1)


def test_rotation_keeps_to_its_angle_and_finds_data_at_the_corners(seeded: None) -> None:
    angles = []
    for _ in range(60):
        _, _, after, mask = augment(Augmentation(rotation_degrees=30), (32, 32))
        linear = gradients_of(after)
        torch.testing.assert_close(linear @ linear.T, torch.eye(2), rtol=0, atol=1e-3)
        angles.append(math.degrees(math.atan2(linear[1, 0], linear[0, 0])))
        assert (after >= 0.99).all()  # coordinates start at 1: nothing from beyond the image
        assert set(mask.unique().tolist()) == {0, 1}
    assert -30.01 < min(angles) < -20 and 20 < max(angles) < 30.01


def test_scaling_keeps_to_its_range(seeded: None) -> None:
    factors = []
    for _ in range(60):
        _, _, after, _ = augment(Augmentation(scaling=(0.85, 1.15)), (32, 32))
        linear = gradients_of(after)
        assert float(linear[0, 0]) == pytest.approx(float(linear[1, 1]), abs=1e-3)
        factors.append(1 / float(linear[0, 0]))
        assert (after >= 0.99).all()
    assert 0.849 < min(factors) < 0.9 and 1.1 < max(factors) < 1.151


def test_affine_jitter_has_a_factor_for_each_axis(seeded: None) -> None:
    _, _, after, _ = augment(Augmentation(scaling=(0.9, 1.1), isotropic_scaling=False), (32, 32))
    linear = gradients_of(after)
    assert abs(linear[0, 0] - linear[1, 1]) > 1e-3
    assert all(0.9 < 1 / float(factor) < 1.1 for factor in linear.diagonal())


def test_random_crop_from_a_larger_patch(seeded: None) -> None:
    augmentation = Augmentation(crop_margin=0.25)
    assert augmentation.initial_patch_size((128, 128), False) == [160, 160]
    starts = set()
    for _ in range(200):
        _, _, after, _ = augment(augmentation, (16, 16))
        torch.testing.assert_close(gradients_of(after), torch.eye(2), rtol=0, atol=0)
        starts.add(int(after[0, 0, 0]))
    assert starts == {1, 2, 3, 4}


def test_flips_along_each_axis(seeded: None) -> None:
    signs = set()
    for _ in range(40):
        before, mask, after, mask_after = augment(Augmentation(flips=True), (8, 6), mirror_axes=(0, 1))
        signs.add(tuple(gradients_of(after).diagonal().sign().int().tolist()))
        torch.testing.assert_close(mask_after, (after[-1:] > 3).to(torch.int16), rtol=0, atol=0)
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_thick_slices_are_rotated_in_plane(seeded: None) -> None:
    augmentation = Augmentation(rotation_degrees=30, crop_margin=0.25)
    _, _, after, _ = augment(augmentation, (4, 16, 16), in_plane_only=True)
    assert after.shape[1:] == (4, 16, 16)
    torch.testing.assert_close(gradients_of(after)[0], torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=1e-4)


def intensities(augmentation: Augmentation, image: torch.Tensor) -> torch.Tensor:
    transforms = augmentation.transforms(image.shape[1:], None, False)
    return ComposeTransforms(transforms)(image=image.clone(), segmentation=torch.zeros_like(image[:1]))["image"]


def test_noise_and_brightness_have_their_deviation(seeded: None) -> None:
    image = torch.zeros(2, 64, 64)
    assert intensities(Augmentation(noise_sigma=0.1), image).std().item() == pytest.approx(0.1, rel=0.05)
    shifts = torch.stack([intensities(Augmentation(brightness_sigma=0.3), image)[:, 0, 0] for _ in range(1000)])
    assert shifts.std(0).numpy() == pytest.approx(np.full(2, 0.3), rel=0.1)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.1  # each channel has its own


def test_brightness_and_contrast_keep_to_their_range(seeded: None) -> None:
    image = torch.rand(1, 64, 64)
    factors = [intensities(Augmentation(brightness=(0.8, 1.2)), image) / image for _ in range(40)]
    assert all(factor.std() < 1e-5 and 0.8 <= factor.mean() <= 1.2 for factor in factors)
    contrasts = [intensities(Augmentation(contrast=(0.8, 1.2)), image) for _ in range(40)]
    assert all(changed.min() >= image.min() and changed.max() <= image.max() for changed in contrasts)
    ratios = [float(changed.std() / image.std()) for changed in contrasts]
    assert 0.79 < min(ratios) < 0.9 and 1.05 < max(ratios) < 1.21


def test_gamma_keeps_mean_and_deviation(seeded: None) -> None:
    image = torch.rand(1, 64, 64)
    changed = intensities(Augmentation(gamma=(0.7, 1.5)), image)
    assert not torch.allclose(changed, image)
    assert changed.mean().item() == pytest.approx(image.mean().item(), abs=1e-5)
    assert changed.std().item() == pytest.approx(image.std().item(), rel=1e-4)


def names_of(transform: BasicTransform) -> list[str]:
    return [type(child).__name__ for child in transform.transforms]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "mirrored", "expected"),
    [
        ("nnUNetTrainerBrainTumNet", (0, 1), ["SpatialTransform", "MirrorTransform", RemoveLabelTansform.__name__]),
        (
            "nnUNetTrainerResSELKA",
            None,
            [
                "SpatialTransform",
                "GaussianNoiseTransform",
                "BrightnessAdditiveTransform",
                "GammaTransform",
                RemoveLabelTansform.__name__,
                "DownsampleSegForDSTransform",
            ],
        ),
    ],
)
def test_trainer_uses_the_augmentation(
    nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, name: str, mirrored: Any, expected: list[str]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = write_preprocessed(nnunet_folders.preprocessed, "2d").trainer(name)
    trainer.initialize()
    training, _ = trainer.get_dataloaders()
    assert names_of(training.data_loader.transforms) == expected
    assert trainer.inference_allowed_mirroring_axes == mirrored
    batch = next(training)
    assert batch["data"].shape == (2, 1, 32, 32)
    target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
    assert target.min() >= 0  # what lies beyond the image is background


def test_mask_of_the_normalisation_and_regions_follow(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    labels = {"background": 0, "whole": [1, 2], "ignore": 3}
    trainer = write_preprocessed(nnunet_folders.preprocessed, "2d", labels=labels).trainer("nnUNetTrainerBrainTumNet")
    transforms = trainer.get_training_transforms(
        (32, 32), None, [[1, 1], [0.5, 0.5]], (0, 1), False, [True], regions=[(1, 2)], ignore_label=3
    )
    assert names_of(transforms)[2:] == [
        "MaskImageTransform",
        RemoveLabelTansform.__name__,
        "ConvertSegmentationToRegionsTransform",
        "DownsampleSegForDSTransform",
    ]
