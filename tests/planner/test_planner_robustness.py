"""Data sets that are small, odd or broken: plans, or a refusal that names the file and what to do."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from braintum.conversion.format.cases import Case, write_cases
from braintum.planner import fingerprint_extractors
from braintum.planner.fingerprint_extractors import BrainTumFingerprintExtractor
from braintum.planner.fingerprint_report import render, warnings
from braintum.planner.planners import BrainTumPlanner25D, BrainTumPlannerLight

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net draws 100 million voxels from every data set, however small."""
    monkeypatch.setattr(fingerprint_extractors, "NUM_FOREGROUND_SAMPLES", 100_000)


def write_data(
    raw: Path,
    images: Sequence[Any],
    masks: Sequence[Any],
    spacing: Sequence[float] = SPACING,
    classes: Sequence[str] = ("glioma", "no_tumor"),
    file_ending: str = ".nii.gz",
    channel_names: Sequence[str] = ("T1ce",),
    patients: Sequence[str] | None = None,
) -> Path:
    """A data set of given arrays: one (or a tuple, one a channel) a case, and its mask; classes take turns."""
    folder = raw / "Dataset007_Odd"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        for channel, array in enumerate(image if isinstance(image, tuple) else (image,)):
            _write(folder / "imagesTr" / f"case_{number}_{channel:04d}{file_ending}", array, spacing)
        _write(folder / "labelsTr" / f"case_{number}{file_ending}", mask, spacing)
    patients = patients or [f"P{number}" for number in range(len(images))]
    write_cases(
        folder / "cases.csv",
        [
            Case(f"case_{number}", classes[number % len(classes)], patient=patient)
            for number, patient in enumerate(patients)
        ],
    )
    content = {
        "channel_names": {str(number): name for number, name in enumerate(channel_names)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(images),
        "file_ending": file_ending,
        "classification": {"class_names": ["glioma", "no_tumor"], "negative_class": "no_tumor"},
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def _write(file: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(edge) for edge in spacing[::-1]][: array.ndim])
    SimpleITK.WriteImage(image, str(file))


def head(shape: Sequence[int], seed: int = 0, dtype: Any = np.int16, scale: float = 100) -> np.ndarray:
    """Noise around ``scale``."""
    return np.random.default_rng(seed).normal(scale, scale / 8, shape).clip(1, None).astype(dtype)


def tumour(shape: Sequence[int]) -> np.ndarray:
    """A mask with a block in its middle."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(edge // 3, edge // 3 + max(1, edge // 4)) for edge in shape)] = 1
    return mask


def make_plans(planner: Any = BrainTumPlannerLight, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fingerprint entry and plans."""
    fingerprint = BrainTumFingerprintExtractor(7, 1).run(True)
    plans = planner(7, **options).plan_experiment()
    assert render("Dataset007_Odd", fingerprint, plans)  # everything can be printed
    return fingerprint["braintum"], plans


def test_one_case(nnunet_folders: Any) -> None:
    write_data(nnunet_folders.raw, [head((64, 48))], [tumour((64, 48))])
    entry, plans = make_plans()
    assert plans["configurations"]["2d"]["patch_size"] == (64, 48)
    assert plans["configurations"]["2d"]["batch_size"] == 12
    assert any("1 cases cannot be split into nnU-Net's 5 folds" in warning for warning in warnings(entry))


def test_class_with_empty_masks_only(nnunet_folders: Any) -> None:
    masks = [tumour((32, 32)), tumour((32, 32)) * 0] * 3
    raw = write_data(nnunet_folders.raw, [head((32, 32), number) for number in range(6)], masks)
    content = json.loads((raw / "dataset.json").read_text())

    def found() -> list[str]:
        entry = BrainTumFingerprintExtractor(7, 1).run(True)["braintum"]
        return [warning for warning in warnings(entry) if "empty masks only" in warning]

    content["classification"]["negative_class"] = "no_tumor"
    (raw / "dataset.json").write_text(json.dumps(content))
    assert not found()
    del content["classification"]["negative_class"]
    (raw / "dataset.json").write_text(json.dumps(content))
    (warning,) = found()
    assert warning.startswith("class no_tumor has empty masks only: if it is the healthy one")


def test_class_with_one_patient_and_class_without_case(nnunet_folders: Any) -> None:
    images, masks = [head((32, 32), number) for number in range(6)], [tumour((32, 32))] * 6
    write_data(nnunet_folders.raw, images, masks, classes=("glioma",), patients=["P0"] * 6)
    entry, plans = make_plans()
    assert plans["configurations"]["2d"]["batch_size"] >= 8
    assert [warning for warning in warnings(entry) if warning.startswith("class glioma has one patient")]
    assert [warning for warning in warnings(entry) if warning.startswith("class no_tumor has no case")]


def test_volumes_stored_in_different_orientations(nnunet_folders: Any) -> None:
    shape = (16, 32, 32)
    raw = write_data(nnunet_folders.raw, [head(shape, number) for number in range(4)], [tumour(shape)] * 4)
    first = next(raw.rglob("*_0000.nii.gz")).name.removesuffix("_0000.nii.gz")
    for file in raw.rglob(f"{first}*.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file)), "PIL"), str(file))
    fingerprint = BrainTumFingerprintExtractor(7, 1).run(True)
    assert fingerprint["braintum"]["orientations"] == {"LPS": 3, "PIL": 1}
    assert any("different orientations (LPS 3, PIL 1)" in warning for warning in warnings(fingerprint["braintum"]))

    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    content["overwrite_image_reader_writer"] = "SimpleITKIOWithReorient"
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    entry, plans = make_plans()
    assert entry["orientations"] == {"RAS": 4}
    assert not any("orientation" in warning for warning in warnings(entry))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_all_healthy(nnunet_folders: Any, dtype: Any) -> None:
    images = [head((32, 32), number, dtype) for number in range(4)]
    write_data(nnunet_folders.raw, images, [np.zeros((32, 32), np.uint8)] * 4)
    entry, plans = make_plans()
    assert entry["tumours"]["share_without_foreground"] == 1
    assert any("no case has any foreground" in warning for warning in warnings(entry))
    recorded = plans["foreground_intensity_properties_per_channel"]["0"]
    assert recorded["mean"] == pytest.approx(np.mean(images), rel=1e-4)  # of all non-zero voxels
    assert plans["configurations"]["2d"]["batch_size"] == 12


@pytest.mark.parametrize(
    ("dtype", "scale", "integer", "bits", "scheme"),
    [
        (np.uint8, 100, True, 8, "RescaleTo01Normalization"),
        (np.uint16, 40_000, True, 16, "PercentileZScoreNormalization"),
        (np.int16, 1_000, True, 11, "PercentileZScoreNormalization"),
        (np.float32, 1.5, False, None, "PercentileZScoreNormalization"),
        (np.float64, 1e-6, False, None, "PercentileZScoreNormalization"),
    ],
)
def test_intensity_types(
    nnunet_folders: Any, dtype: Any, scale: float, integer: bool, bits: int | None, scheme: str
) -> None:
    images = []
    for number in range(3):
        image = np.random.default_rng(number).normal(scale, scale / 20, (32, 32)).clip(0, None)
        images.append(image.clip(0, np.iinfo(dtype).max if integer else None).astype(dtype))
    write_data(nnunet_folders.raw, images, [tumour((32, 32))] * 3)
    entry, plans = make_plans()
    channel = entry["channels"][0]
    assert channel["integer"] is integer
    assert (channel["bit_depth"] or 0) >= (bits or 1) - 1 if integer else channel["bit_depth"] is None
    assert channel["whole_image"]["mean"] == pytest.approx(scale, rel=0.05)
    assert plans["configurations"]["2d"]["normalization_schemes"] == [scheme]
    assert plans["braintum_decisions"]["data"]["normalization of T1ce"].startswith(scheme)


def test_constant_channel(nnunet_folders: Any) -> None:
    shape = (12, 32, 32)
    images = [(head(shape, number), head(shape, number) * (number > 0)) for number in range(3)]
    write_data(nnunet_folders.raw, images, [tumour(shape)] * 3, channel_names=("T1", "FLAIR"))
    entry, plans = make_plans()
    assert [(c["name"], c["missing_images"], c["missing_in"]) for c in entry["channels"]] == [
        ("T1", 0, []),
        ("FLAIR", 1, ["case_0"]),
    ]
    assert any("FLAIR is constant (missing sequence) in 1 of 3 cases: case_0" in found for found in warnings(entry))
    assert len(plans["configurations"]["3d_fullres"]["normalization_schemes"]) == 2


def test_channel_that_is_missing_everywhere_and_empty_image(nnunet_folders: Any) -> None:
    empty = np.zeros((32, 32), np.int16)
    images = [(head((32, 32)), empty), (empty, empty), (head((32, 32), 2), empty)]
    write_data(nnunet_folders.raw, images, [tumour((32, 32))] * 3, channel_names=("T1", "FLAIR"))
    entry, plans = make_plans()
    assert entry["channels"][1]["missing_images"] == 3
    assert entry["channels"][1]["nonzero"]["mean"] is None
    assert plans["configurations"]["2d"]["patch_size"] == (32, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(nnunet_folders: Any, value: float) -> None:
    images = [head((32, 32), number, np.float32) for number in range(3)]
    images[1][3, 4] = value
    write_data(nnunet_folders.raw, images, [tumour((32, 32))] * 3, file_ending=".mha")
    with pytest.raises(ValueError, match=r"case_1_0000.mha: 1 voxels are NaN or infinite; replace them"):
        make_plans()
    assert not list(nnunet_folders.preprocessed.rglob("dataset_fingerprint.json"))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((32, 30), np.uint8),
            r"case_0.nii.gz: label map of shape \(1, 32, 30\), but .*case_0_0000.nii.gz has",
        ),
        (np.full((32, 32), 0.5, np.float32), r"case_0.nii.gz: label map with fractions or negative values"),
        (np.full((32, 32), -1, np.int16), r"case_0.nii.gz: label map with fractions or negative values"),
    ],
)
def test_bad_label_maps_are_refused(nnunet_folders: Any, mask: np.ndarray, message: str) -> None:
    write_data(nnunet_folders.raw, [head((32, 32))], [mask])
    with pytest.raises(ValueError, match=message):
        make_plans()


def test_unreadable_and_missing_files_are_refused(nnunet_folders: Any) -> None:
    folder = write_data(
        nnunet_folders.raw,
        [(head((32, 32), number), head((32, 32))) for number in range(3)],
        [tumour((32, 32))] * 3,
        channel_names=("T1", "T2"),
    )
    second = folder / "imagesTr" / "case_1_0001.nii.gz"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match=r"case_1_0000.nii.gz: 1 channels, but dataset.json names 2"):
        make_plans()
    _write(second, head((32, 31)), SPACING)
    with pytest.raises(ValueError, match=r"case_1_0000.nii.gz, .*case_1_0001.nii.gz: not readable as one case"):
        make_plans()
    second.write_bytes(content)
    (folder / "labelsTr" / "case_2.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"case_2.nii.gz: not readable as one case"):
        make_plans()


@pytest.mark.parametrize(
    ("shape", "spacing", "patch_3d"),
    [
        ((5, 64, 64), (12.0, 0.5, 0.5), (5, 64, 64)),
        ((64, 5, 64), (0.5, 12.0, 0.5), (5, 64, 64)),  # sagittal: the coarse axis comes first
        ((40, 8, 40), (1.0, 1.0, 1.0), (40, 8, 40)),
    ],
)
def test_extreme_anisotropy(
    nnunet_folders: Any, shape: tuple[int, ...], spacing: tuple[float, ...], patch_3d: tuple[int, ...]
) -> None:
    write_data(nnunet_folders.raw, [head(shape, number) for number in range(3)], [tumour(shape)] * 3, spacing)
    entry, plans = make_plans()
    assert tuple(plans["configurations"]["3d_fullres"]["patch_size"]) == patch_3d
    assert entry["anisotropy"]["max"] == max(spacing) / min(spacing)
    assert plans["braintum_decisions"]["3d_fullres"]["patch"].startswith("patch ")


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1, 64, 48), (5.0, 1.0, 1.0)),
        ((1, 64, 48), (0.5, 1.0, 1.0)),  # a slice thinner than its pixels are wide
        ((64, 1, 48), (1.0, 1.0, 1.0)),
        ((64, 48, 1), (1.0, 1.0, 0.2)),
    ],
)
def test_volumes_of_one_slice_are_planned_in_2d(
    nnunet_folders: Any, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    write_data(nnunet_folders.raw, [head(shape, number) for number in range(3)], [tumour(shape)] * 3, spacing)
    _, plans = make_plans()
    assert list(plans["configurations"]) == ["2d"]
    assert tuple(plans["configurations"]["2d"]["patch_size"]) == (64, 48)
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    assert shape[forward[0]] == 1 and [forward[axis] for axis in backward] == [0, 1, 2]


def test_some_volumes_of_one_slice(nnunet_folders: Any) -> None:
    shapes = [(1, 48, 48), (20, 48, 48), (24, 48, 48)]
    write_data(nnunet_folders.raw, [head(shape) for shape in shapes], [tumour(shape) for shape in shapes], (3, 1, 1))
    _, plans = make_plans(BrainTumPlanner25D)
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    assert plans["configurations"]["2d"]["neighbouring_slices"] == 1


@pytest.mark.parametrize("shape", [(6, 6), (1, 7, 7), (4, 6, 6)])
def test_images_that_are_too_small(nnunet_folders: Any, shape: tuple[int, ...]) -> None:
    write_data(nnunet_folders.raw, [head(shape, number) for number in range(2)], [tumour(shape)] * 2)
    with pytest.raises(ValueError, match=r"Dataset007_Odd: images of .* voxels are too small for a U-Net"):
        make_plans()


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, float("nan")])
def test_impossible_memory_target(nnunet_folders: Any, gigabytes: float) -> None:
    write_data(nnunet_folders.raw, [head((32, 32))], [tumour((32, 32))])
    with pytest.raises(ValueError, match="-gpu_memory_target takes a positive number of gigabytes"):
        make_plans(gpu_memory_target_in_gb=gigabytes)


def test_memory_target_that_holds_nothing(nnunet_folders: Any) -> None:
    write_data(nnunet_folders.raw, [head((64, 64))], [tumour((64, 64))])
    with pytest.raises(ValueError, match=r"not even a patch of .* voxels fits 1e-05 GB; plan with a larger"):
        make_plans(gpu_memory_target_in_gb=1e-5)
