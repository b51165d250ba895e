"""Normalisation schemes against computation by hand and against scikit-image, and the choice among them."""

from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    RescaleTo01Normalization,
    ZScoreNormalization,
)
from scipy.stats import rankdata
from skimage.exposure import equalize_adapthist

from braintum.planner.preprocessing.normalization import (
    CLAHEZScoreNormalization,
    PercentileZScoreNormalization,
    VolumeRescaleTo01Normalization,
    choose_normalization,
)

pytestmark = pytest.mark.filterwarnings("error")

SCHEMES = [PercentileZScoreNormalization, CLAHEZScoreNormalization]


def run(scheme: type, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    return scheme(use_mask_for_norm=mask is not None, intensityproperties={}).run(image, mask)


def brain(shape: tuple[int, ...] = (3, 40, 48), seed: int = 0) -> np.ndarray:
    """A skull-stripped volume of whole numbers, float32 as the preprocessor hands it over."""
    image = np.random.default_rng(seed).integers(100, 900, shape).astype(np.float32)
    image[:, :5] = image[:, :, -7:] = 0
    return image


def test_percentile_z_score_by_hand() -> None:
    # non-zero values 1 … 201: percentiles 0.5 and 99.5 lie at ranks 1 and 199 from 0, at the values 2 and 200
    image = np.concatenate([np.zeros(49), np.arange(1, 202)]).reshape(1, 10, 25)
    clipped = np.clip(np.arange(1, 202), 2, 200)
    deviation = np.sqrt(((clipped - 101.0) ** 2).mean())
    result = run(PercentileZScoreNormalization, image)
    assert result.dtype == np.float32
    assert np.allclose(result.ravel()[49:], (clipped - 101) / deviation)
    assert np.allclose(result.ravel()[:49], (2 - 101) / deviation)  # clipped with the rest


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mask_keeps_background_at_zero(scheme: type) -> None:
    image = brain()
    mask = np.where(image == 0, -1, 0)
    masked, plain = run(scheme, image.copy(), mask), run(scheme, image.copy())
    assert (masked[mask < 0] == 0).all() and (plain[mask < 0] != 0).all()
    assert np.array_equal(masked[mask == 0], plain[mask == 0])
    assert masked[mask == 0].mean() == pytest.approx(0, abs=1e-5)
    assert masked[mask == 0].std() == pytest.approx(1, abs=1e-5)


def test_few_outliers_do_not_matter() -> None:
    image = brain()
    bright = image.copy()
    bright[1, 20, 20] = 32767  # as in BraTS
    others = image == bright

    def change(scheme: type) -> float:
        return np.abs(run(scheme, image.copy()) - run(scheme, bright.copy()))[others].max()

    assert change(PercentileZScoreNormalization) < 0.01 < 0.5 < change(ZScoreNormalization)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e-12, -3.0, 32767.0])
def test_constant_channel_becomes_zero(scheme: type, value: float) -> None:
    assert (run(scheme, np.full((2, 16, 16), value, np.float32)) == 0).all()
    half = np.zeros((2, 16, 16), np.float32)
    half[:, 4:] = value
    assert (run(scheme, half) == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (5, 7, 3), (2, 50, 64)])
def test_any_shape(scheme: type, shape: tuple[int, ...]) -> None:
    result = run(scheme, np.random.default_rng(1).normal(100, 20, shape).astype(np.float32))
    assert result.shape == shape and result.dtype == np.float32 and np.isfinite(result).all()


def test_clahe_is_that_of_scikit_image_slice_by_slice() -> None:
    image = brain((3, 40, 50))
    image[2, 30:, :40] = 0  # slices differ
    nonzero = image != 0
    low, high = np.percentile(image[nonzero], [0.5, 99.5])
    # a grid of 8 x 8 tiles: 40 / 8 = 5 and 50 / 8 rounded up = 7; OpenCV's clip limit 2.0 with 256 bins
    slices = [
        equalize_adapthist(((np.clip(one, low, high) - low) / (high - low)), (5, 7), clip_limit=2.0 / 256, nbins=256)
        for one in image.astype(np.float64)
    ]
    expected = np.stack(slices)
    expected = (expected - expected[nonzero].mean()) / expected[nonzero].std()
    # float32 against float64: an intensity at the edge of a histogram bin may fall into the other one
    difference = np.abs(run(CLAHEZScoreNormalization, image.copy()) - expected)
    assert (difference < 1e-3).mean() > 0.99 and difference.max() < 0.1


def test_clahe_does_not_see_a_z_score_before_it() -> None:
    image = brain((2, 40, 48)) + 0.0
    image[image == 0] = 1  # no voxel is zero before or after
    standardised = (image - image.mean()) / image.std()
    difference = np.abs(run(CLAHEZScoreNormalization, image.copy()) - run(CLAHEZScoreNormalization, standardised))
    assert (difference < 1e-3).mean() > 0.99


def test_clahe_raises_local_contrast() -> None:
    y, x = np.mgrid[:64, :64]
    image = (100 + 10.0 * x + 3 * ((x + y) % 8 < 4)).astype(np.float32)[None]  # a faint pattern on a strong gradient

    def pattern(result: np.ndarray) -> float:
        """Step between neighbours along y, where the gradient plays no role, relative to the whole range."""
        return np.abs(np.diff(result[0], axis=0)).max() / np.ptp(result)

    assert pattern(run(CLAHEZScoreNormalization, image.copy())) > 1.5 * pattern(
        run(PercentileZScoreNormalization, image.copy())
    )


def test_z_score_keeps_order() -> None:
    image = brain()
    inside = (image > np.percentile(image[image != 0], 1)) & (image < np.percentile(image[image != 0], 99))
    assert np.array_equal(
        rankdata(run(PercentileZScoreNormalization, image.copy())[inside], "dense"), rankdata(image[inside], "dense")
    )


def channel(integer: bool, minimum: float, maximum: float, skull_stripped: bool = False) -> dict[str, Any]:
    return {
        "name": "T1ce",
        "integer": integer,
        "minimum": minimum,
        "maximum": maximum,
        "skull_stripped": skull_stripped,
        "whole_image": {"percentile_00_5": minimum},
        "nonzero": {"percentile_00_5": minimum},
    }


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        (channel(True, 0, 255), "T1ce", "RescaleTo01Normalization"),  # PNG, JPEG; 8-bit values in a 16-bit file
        (channel(True, 3, 200), "MRI", "RescaleTo01Normalization"),
        (channel(True, 0, 0), "T1", "RescaleTo01Normalization"),  # a sequence that no image has
        (channel(True, 0, 3000), "T1ce", "PercentileZScoreNormalization"),  # Figshare's original 16-bit slices
        (channel(True, 0, 32767, True), "FLAIR", "PercentileZScoreNormalization"),  # BraTS
        (channel(True, -5, 250), "T1", "PercentileZScoreNormalization"),
        (channel(False, 0, 1), "T1", "PercentileZScoreNormalization"),
        (channel(False, 0.0, 255.0), "T1", "PercentileZScoreNormalization"),
        (channel(True, 0, 3000), "zscore", "ZScoreNormalization"),
        (channel(True, 0, 255), "noNorm", "NoNormalization"),
        (channel(True, 0, 255), "CLAHE_zscore", "CLAHEZScoreNormalization"),
        (channel(True, 0, 255), "percentile_zscore", "PercentileZScoreNormalization"),
    ],
)
def test_choice(entry: dict[str, Any], name: str, expected: str) -> None:
    scheme, reason = choose_normalization(entry, name)
    assert scheme == expected
    assert reason and "\n" not in reason


def test_slices_of_a_rescaled_volume_keep_its_scale_and_a_volume_gets_one() -> None:
    volume = brain()
    scaled = run(RescaleTo01Normalization, volume.copy())
    dark = scaled[1:2] * 0.5
    np.testing.assert_array_equal(run(VolumeRescaleTo01Normalization, dark), dark)
    np.testing.assert_array_equal(run(VolumeRescaleTo01Normalization, volume), scaled)
    assert run(RescaleTo01Normalization, dark.copy()).max() == 1  # what nnU-Net's scheme makes of it


def test_8_bit_export_and_its_16_bit_original_look_alike() -> None:
    original = np.random.default_rng(3).integers(0, 4000, (1, 32, 32)).astype(np.float32)
    original.flat[:2] = 0, 4000
    export = np.round(original / 4000 * 255)
    scheme, _ = choose_normalization(channel(True, 0, 255), "T1ce")
    assert scheme == RescaleTo01Normalization.__name__
    both = [RescaleTo01Normalization(False, {}).run(image) for image in (original, export)]
    assert np.abs(both[0] - both[1]).max() < 0.5 / 255 + 1e-6
    assert both[0].min() == 0 and both[0].max() == 1
