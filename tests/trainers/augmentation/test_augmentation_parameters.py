"""What the augmentation on the training device draws has the distribution of what batchgeneratorsv2 draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from device_augmentation_data import LABELS, SIGNIFICANT, generator
from scipy.stats import ks_2samp

from braintum.trainers.augmentation.augmentation_parameters import Distribution, UnsupportedAugmentation
from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation
from braintum.trainers.augmentation.device_spatial import Spatial

CONTRAST = BGContrast((0.75, 1.25))


@pytest.fixture
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("scalar", [0.3, (0.7, 1.4), BGContrast((0.75, 1.25)), BGContrast((1.1, 1.5)), (2, 2)])
def test_numbers_have_batchgenerators_distribution(seeded: None, scalar: Any) -> None:
    from batchgeneratorsv2.helpers.scalar_type import sample_scalar

    theirs = np.array([sample_scalar(scalar) for _ in range(4000)])
    ours = Distribution.of(scalar).draw((40, 100), generator()).flatten().numpy()
    assert ks_2samp(theirs, ours).pvalue > SIGNIFICANT
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02) and ours.std() == pytest.approx(theirs.std(), abs=0.02)


@pytest.mark.parametrize("scalar", [lambda **_: 0.5, BGContrast(lambda: 1.0)], ids=["function", "BGContrast"])
def test_a_function_whose_distribution_is_unknown_is_refused(scalar: Any) -> None:
    with pytest.raises(UnsupportedAugmentation, match="braintum_augmentation=cpu"):
        Distribution.of(scalar)


def drawn_values(transform: Any, name: str, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Numbers a sample and whether a channel takes part, as batchgeneratorsv2 draws them for three channels."""
    image = torch.zeros(3, 8, 8)
    values, takes_part = [], []
    for _ in range(count):
        parameters = transform.get_parameters(image=image)
        channels = parameters.get("apply_to_channel", parameters.get("apply_idx"))
        if isinstance(channels, torch.Tensor) and channels.dtype == torch.bool:
            channels = channels.nonzero().flatten()
        takes_part.append(len(channels))
        if len(channels):
            values.append(np.ravel(np.asarray(parameters[name], float)))
    return np.concatenate(values), np.array(takes_part)


@pytest.mark.parametrize("synchronize", [False, True])
@pytest.mark.parametrize(
    ("make", "theirs", "ours"),
    [
        (lambda s: GaussianNoiseTransform((0, 0.1), 0.6, s), "sigmas", "sigma"),
        (lambda s: GaussianBlurTransform((0.5, 1.0), s, False, 0.5), "sigmas", "sigma"),
        (lambda s: MultiplicativeBrightnessTransform(CONTRAST, s, 0.7), "multipliers", "factor"),
        (lambda s: BrightnessAdditiveTransform(0.1, 0.3, s, 0.7), "shift", "shift"),
        (lambda s: ContrastTransform(CONTRAST, True, s, 0.7), "multipliers", "factor"),
        (lambda s: SimulateLowResolutionTransform((0.5, 1), s, True, (0,), None, 0.5), "scales", "scales"),
        (lambda s: GammaTransform(BGContrast((0.7, 1.5)), 0.3, s, 0.8, 0.6), "gamma", "exponent"),
    ],
    ids=["noise", "blur", "brightness", "shift", "contrast", "resolution", "gamma"],
)
def test_parameters_of_intensities_have_batchgenerators_distribution(
    seeded: None, make: Callable[[bool], Any], theirs: str, ours: str, synchronize: bool
) -> None:
    transform = make(synchronize)
    their_values, their_channels = drawn_values(transform, theirs)
    (step,) = DeviceAugmentation.of(transform, (8, 8), LABELS).steps
    parameters = step.draw(torch.ones(2000, dtype=torch.bool), 3, generator(1))
    assert ks_2samp(their_values, np.ravel(np.asarray(parameters[ours], float))).pvalue > SIGNIFICANT
    counts = np.bincount((parameters["channels"] // 3).numpy(), minlength=2000)
    assert ks_2samp(their_channels, counts).pvalue > SIGNIFICANT
    assert counts.mean() == pytest.approx(their_channels.mean(), abs=0.15)
    if synchronize:
        values = np.asarray(parameters[ours], float).reshape(len(parameters["channels"]), -1)
        first = values[np.searchsorted(parameters["channels"].numpy() // 3, parameters["channels"].numpy() // 3)]
        np.testing.assert_array_equal(values, first)  # the channels of a sample are treated alike
    if "inverts" in parameters:
        assert parameters["inverts"].float().mean().item() == pytest.approx(0.3, abs=0.04)
        assert parameters["retains"].float().mean().item() == pytest.approx(0.6, abs=0.04)


def test_inactive_samples_and_forbidden_channels_are_left_alone() -> None:
    transform = RandomTransform(
        SimulateLowResolutionTransform((0.5, 1), False, True, None, allowed_channels=(2,), p_per_channel=1), 0.25
    )
    (step,) = DeviceAugmentation.of(transform, (8, 8), LABELS).steps
    channels = step.draw(torch.arange(4000) % 2 == 0, 3, generator())["channels"]
    assert set((channels % 3).tolist()) == {2} and set((channels // 3 % 2).tolist()) == {0}
    assert len(channels) == pytest.approx(500, abs=60)


@pytest.mark.parametrize("synchronize", [0, 0.5, 1])
@pytest.mark.parametrize("num_axes", [2, 3])
def test_parameters_of_space_have_batchgenerators_distribution(seeded: None, num_axes: int, synchronize: float) -> None:
    patch, initial = (8,) * num_axes, (12,) * num_axes
    transform = SpatialTransform(
        patch, (5,) * num_axes, True, p_rotation=0.4, rotation=(-0.5, 0.7), p_rot_per_axis=0.7,
        p_scaling=0.4, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=synchronize,
    )  # fmt: skip
    image = torch.zeros(1, *initial)
    theirs = [transform.get_parameters(image=image) for _ in range(1500)]
    ours = Spatial.of(transform, False, LABELS).draw(3000, initial, generator(3))
    transformed = np.array(ours["is_transformed"])
    assert transformed.mean() == pytest.approx(1 - 0.6**2, abs=0.03)
    assert np.mean([one["grid"] is not None for one in theirs]) == pytest.approx(1 - 0.6**2, abs=0.03)
    their_matrices = np.stack([one["affine"] for one in theirs if one["grid"] is not None])
    our_matrices = ours["affine"].numpy()[transformed]
    for row in range(num_axes):
        for column in range(num_axes):
            assert ks_2samp(their_matrices[:, row, column], our_matrices[:, row, column]).pvalue > SIGNIFICANT
    assert ks_2samp(np.linalg.det(their_matrices), np.linalg.det(our_matrices)).pvalue > SIGNIFICANT
    their_centres = np.array([one["center_location_in_pixels"] for one in theirs])
    for axis in range(num_axes):
        assert ks_2samp(their_centres[:, axis], ours["centre"].numpy()[:, axis]).pvalue > SIGNIFICANT
    np.testing.assert_array_equal(
        ours["affine"].numpy()[~transformed], np.eye(num_axes)[None].repeat(sum(~transformed), 0)
    )
