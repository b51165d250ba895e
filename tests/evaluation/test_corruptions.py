"""Faults of images grow with severity and leave files otherwise as they are."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from braintum.evaluation.stress import corruptions as module
from braintum.evaluation.stress.corruptions import CORRUPTIONS, SEVERITIES, applicable, corrupt
from braintum.evaluation.stress.stress_images import CLEAN, Condition, ImageTask, write_images

SLICE, VOLUME = (160, 140), (10, 144, 60)
SPACINGS = {SLICE: (0.5, 1.5), VOLUME: (4.0, 1.0, 1.0)}


def head(shape, sequences=2, dtype=np.uint8):
    """An ellipsoid with structure on a black background, (sequences, *shape)."""
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.8
    texture = 110 + 50 * np.sin(17 * grid[-1]) * np.cos(13 * grid[-2]) + 30 * grid[-1]
    return np.stack([inside * (texture + 12 * number) for number in range(sequences)]).astype(dtype)


@pytest.mark.parametrize("shape", [SLICE, VOLUME], ids=["slice", "volume"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grows_with_severity(name, shape):
    image = head(shape)
    before = image.copy()
    faulty = [corrupt(image, SPACINGS[shape], name, severity, "case_1") for severity in SEVERITIES]
    distances = [np.abs(other.astype(float) - image).mean() for other in faulty]
    assert distances[0] > 0
    assert distances == sorted(distances) and len(set(distances)) == 5
    assert all(other.shape == image.shape and other.dtype == image.dtype for other in faulty)
    np.testing.assert_array_equal(image, before)
    again = corrupt(image, SPACINGS[shape], name, 3, "case_1")
    np.testing.assert_array_equal(again, faulty[2])


@pytest.mark.parametrize("name", ["noise", "bias_field", "motion"])
def test_cases_differ(name):
    image = head(SLICE)
    first, second = (corrupt(image, SPACINGS[SLICE], name, 4, case) for case in ("a", "b"))
    assert (first != second).any()


def test_noise_has_the_stated_deviation():
    image = np.zeros((1, 200, 200), np.float32)
    image[:, 50:150, 50:150] = np.linspace(-300, 700, 100)  # negative values: nothing is cut off
    low, high = np.percentile(image, (0.5, 99.5))
    for severity, share in zip(SEVERITIES, CORRUPTIONS["noise"].strengths, strict=True):
        noise = corrupt(image, (1, 1), "noise", severity, "case") - image
        assert noise.std() == pytest.approx(share * (high - low), rel=0.02)
        assert abs(noise.mean()) < 0.02 * noise.std() + 1e-3


def test_blur_is_a_gaussian_of_the_stated_width():
    image = np.zeros((1, 201, 201), np.float32)
    image[0, 100, 100] = 1.0
    image[0, :3, :3] = 1.0  # a range, in spite of the percentiles
    spacing = (1.0, 0.5)
    blurred = corrupt(image, spacing, "blur", 5, "case")[0, 60:141, 60:141].astype(float)
    offsets = np.arange(-40, 41)
    variance = [
        np.sum(blurred.sum(1) * offsets**2) / blurred.sum() * spacing[0] ** 2,
        np.sum(blurred.sum(0) * offsets**2) / blurred.sum() * spacing[1] ** 2,
    ]
    np.testing.assert_allclose(np.sqrt(variance), 0.025 * 201, rtol=0.02)


def test_gamma_is_the_power():
    image = np.tile(np.linspace(0, 1000, 101), (1, 64, 1)).astype(np.float32)
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = (image - low) / (high - low)
    faulty = (corrupt(image, (1, 1), "gamma", 5, "case") - low) / (high - low)
    middle = np.s_[:, :, 10:90]
    powers = np.log(faulty[middle]) / np.log(scaled[middle])
    np.testing.assert_allclose(np.abs(np.log(powers)), CORRUPTIONS["gamma"].strengths[4], rtol=1e-2)


def test_bias_field_has_the_stated_extremes():
    image = np.full((1, 96, 96), 500, np.float32)
    image[:, :2, :2] = 0
    image[:, 2:, 2:] += np.random.default_rng(0).uniform(0, 100, (94, 94)).astype(np.float32)
    image[0, :4, 10:] = 0  # more than half a percent of background
    inside = image[0] > 0
    factor = np.log(corrupt(image, (1, 1), "bias_field", 4, "case")[0][inside] / image[0][inside])
    assert np.abs(factor).max() == pytest.approx(CORRUPTIONS["bias_field"].strengths[3], rel=0.15)


def test_motion_leaves_the_head_in_its_place():
    """TorchIO turns about the origin of the affine; were that a corner, the head would be elsewhere."""
    image = head(SLICE, 1)
    centre = [np.average(axis, weights=image[0]) for axis in np.indices(SLICE)]
    for severity in SEVERITIES:
        moved = corrupt(image, SPACINGS[SLICE], "motion", severity, "case")[0]
        found = [np.average(axis, weights=moved) for axis in np.indices(SLICE)]
        assert np.linalg.norm(np.subtract(found, centre)) < 0.03 * max(SLICE)


def test_missing_sequence():
    image = head(VOLUME, 3, np.int16)
    faulty = corrupt(image, SPACINGS[VOLUME], "missing_sequence", 5, "case")
    missing = [bool((sequence == 0).all()) for sequence in faulty]
    assert missing.count(True) == 1
    kept = [number for number, gone in enumerate(missing) if not gone]
    np.testing.assert_array_equal(faulty[kept], image[kept])
    half = corrupt(image, SPACINGS[VOLUME], "missing_sequence", 2, "case")
    changed = (half != image).any((0, 2, 3))
    assert changed.sum() <= round(0.4 * VOLUME[0]) and (changed[0] != changed[-1] or not changed[[0, -1]].any())
    assert "missing_sequence" in applicable(2) and "missing_sequence" not in applicable(1)
    with pytest.raises(ValueError, match="at least 2 sequences, not 1"):
        corrupt(image[:1], SPACINGS[VOLUME], "missing_sequence", 1, "case")


def test_background_is_kept_on_request():
    image = head(SLICE)
    noisy, kept = (corrupt(image, (1, 1), "noise", 5, "case", keep) for keep in (False, True))
    outside = (image == 0).all(0)
    assert (noisy[:, outside] > 0).any() and not kept[:, outside].any()
    np.testing.assert_array_equal(noisy[:, ~outside], kept[:, ~outside])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rust", 1), "'rust' is no fault"),
        (("noise", 6), "severity 6"),
        (("noise", 0), "severity 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(head(SLICE), (1, 1), *arguments, "case")
    with pytest.raises(ValueError, match="a spacing an axis"):
        corrupt(head(SLICE), (1, 1, 1), "noise", 1, "case")


def test_strengths_are_ordered():
    assert set(CORRUPTIONS) == {
        *("noise", "blur", "bias_field", "gamma", "motion", "ghosting", "downsampling", "missing_sequence"),
    }
    for corruption in CORRUPTIONS.values():
        assert len(corruption.strengths) == len(SEVERITIES)
        ordered = sorted(corruption.strengths, reverse=corruption.name == "downsampling")
        assert list(corruption.strengths) == ordered
        assert type(corruption).__doc__ and corruption.description
    with pytest.raises(AttributeError):
        CORRUPTIONS["noise"].strengths = (1, 2, 3, 4, 5)
    assert replace(module.GaussianNoise(), strengths=(1, 2, 3, 4, 5)).strengths[4] == 5


def nifti(file, array):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.5, 2.0, 3.0)[: array.ndim])
    image.SetOrigin((10.0, -20.0, 30.0)[: array.ndim])
    if array.ndim == 3:
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(file))


@pytest.mark.parametrize("shape", [(40, 36), (8, 24, 20)], ids=["slice", "volume"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_nifti_files_keep_geometry_and_type(tmp_path, shape, dtype):
    files = tuple(tmp_path / f"case_000{channel}.nii.gz" for channel in range(2))
    for file, array in zip(files, head(shape, 2, dtype), strict=True):
        nifti(file, array)
    (tmp_path / "out").mkdir()
    for condition in (Condition("noise", 3), Condition(CLEAN, 0)):
        write_images(ImageTask("case", files, condition, tmp_path / "out", ".nii.gz"))
        for channel, file in enumerate(files):
            before = SimpleITK.ReadImage(str(file))
            name = f"{condition.case_name('case')}_000{channel}.nii.gz"
            after = SimpleITK.ReadImage(str(tmp_path / "out" / name))
            assert after.GetPixelID() == before.GetPixelID()
            np.testing.assert_allclose(after.GetSpacing(), before.GetSpacing())
            np.testing.assert_allclose(after.GetOrigin(), before.GetOrigin())
            np.testing.assert_allclose(after.GetDirection(), before.GetDirection())
            same = (SimpleITK.GetArrayFromImage(after) == SimpleITK.GetArrayFromImage(before)).all()
            assert same == (condition.corruption == CLEAN)


@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "RGB"])
def test_png_files_stay_8_bit(tmp_path, colours):
    array = head((40, 36), 3)
    array = array.transpose(1, 2, 0) if colours else array[0]
    file = tmp_path / "case_0000.png"
    Image.fromarray(array).save(file)
    write_images(ImageTask("case", (file,), Condition("blur", 4), tmp_path, ".png"))
    with Image.open(tmp_path / "case__blur_4_0000.png") as image:
        assert image.mode == ("RGB" if colours else "L")
        after = np.asarray(image)
    assert after.shape == array.shape and after.dtype == np.uint8 and (after != array).any()


def test_bad_files(tmp_path):
    nifti(tmp_path / "a_0000.nii.gz", head((20, 20), 1)[0])
    nifti(tmp_path / "a_0001.nii.gz", head((20, 22), 1)[0])
    files = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    task = ImageTask("a", files, Condition("noise", 1), tmp_path, ".nii.gz")
    with pytest.raises(ValueError, match="a: its sequences differ in size"):
        write_images(task)
    (tmp_path / "b_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz: not a readable image"):
        write_images(replace(task, files=(tmp_path / "b_0000.nii.gz",)))
    with pytest.raises(ValueError, match=r"not \*\.dcm"):
        write_images(replace(task, ending=".dcm"))
