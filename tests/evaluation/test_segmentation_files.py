"""Mask metrics of files and folders: equal to nnU-Net's where it has them, readable for it, and strict about input."""

import inspect
import json
import math
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image
from scipy.ndimage import gaussian_filter

from braintum.evaluation.metrics.segmentation_metrics import (
    case_metrics,
    folder_metrics,
    mask_metrics,
    metrics_on_folder,
    save_summary,
    summarise,
)

NNUNET_KEYS = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
SPACING = (5.0, 0.75, 0.5)  # NIfTI keeps it in single precision
REGIONS: list[Any] = [(1, 2, 3), (2, 3), (3,)]


def label_map(seed: int, shape: tuple[int, ...], largest: int = 3) -> np.ndarray:
    """Nested labels: each one lies within the one below."""
    blob = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.digitize(blob / blob.std(), np.linspace(0.2, 1.2, largest)).astype(np.uint8)


def write_nifti(file: Path, seg: np.ndarray, spacing: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(seg)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))
    return file


def write_png(file: Path, seg: np.ndarray) -> Path:
    Image.fromarray(seg).save(file)
    return file


@pytest.mark.parametrize("labels", [[1, 2, 3], REGIONS, [1, (2, 3)]])
@pytest.mark.parametrize("ignore_label", [None, 4])
def test_shared_keys_equal_nnunet(tmp_path: Path, labels: list[Any], ignore_label: int | None) -> None:
    true, predicted = label_map(0, (6, 15, 14)), label_map(1, (6, 15, 14))
    if ignore_label:
        true[:2, 3:9] = ignore_label
    predicted[predicted == 3] = 2  # one label is never predicted
    reference_file = write_nifti(tmp_path / "true.nii.gz", true, SPACING)
    prediction_file = write_nifti(tmp_path / "predicted.nii.gz", predicted, SPACING)
    case = case_metrics(reference_file, prediction_file, SimpleITKIO(), labels, ignore_label)
    expected = compute_metrics(str(reference_file), str(prediction_file), SimpleITKIO(), labels, ignore_label)
    assert list(case["metrics"]) == labels and case["length_unit"] == "mm"
    assert case["reference_file"] == expected["reference_file"]
    assert case["prediction_file"] == expected["prediction_file"]
    for item in labels:
        assert expected["metrics"][item].keys() == NNUNET_KEYS
        assert {name: case["metrics"][item][name] for name in NNUNET_KEYS} == expected["metrics"][item]
        expected_metrics = mask_metrics(np.isin(true, item), np.isin(predicted, item), SPACING, true == ignore_label)
        np.testing.assert_equal(case["metrics"][item], expected_metrics)


def test_undefined_as_in_nnunet(tmp_path: Path) -> None:
    file = write_png(tmp_path / "healthy.png", np.zeros((8, 9), dtype=np.uint8))
    metrics = case_metrics(file, file, NaturalImage2DIO(), [1])["metrics"][1]
    expected = compute_metrics(str(file), str(file), NaturalImage2DIO(), [1])["metrics"][1]
    assert math.isnan(metrics["Dice"]) and math.isnan(metrics["Jaccard_distance"])
    assert {name: metrics[name] for name in NNUNET_KEYS} == pytest.approx(expected, nan_ok=True, rel=0, abs=0)


def test_2d_files(tmp_path: Path) -> None:
    true, predicted = label_map(0, (20, 17), 1), label_map(1, (20, 17), 1)
    pngs = [write_png(tmp_path / f"{name}.png", seg) for name, seg in (("true", true), ("predicted", predicted))]
    in_pixels = case_metrics(pngs[0], pngs[1], NaturalImage2DIO(), [1])
    assert in_pixels["length_unit"] == "px"
    assert in_pixels["metrics"][1] == mask_metrics(true > 0, predicted > 0, (1, 1))
    niftis = [
        write_nifti(tmp_path / f"{name}.nii.gz", seg, (0.5, 2))
        for name, seg in (("true", true), ("predicted", predicted))
    ]
    in_mm = case_metrics(niftis[0], niftis[1], SimpleITKIO(), [1])
    assert in_mm["length_unit"] == "mm"
    assert in_mm["metrics"][1] == mask_metrics(true > 0, predicted > 0, (0.5, 2))
    assert in_mm["metrics"][1]["HD"] != in_pixels["metrics"][1]["HD"]


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4, 8, 9), (1, 1, 2), r"true.nii.gz has shape \(4, 9, 8\) but .*predicted.nii.gz has \(4, 8, 9\)"),
        ((4, 9, 8), (1, 1, 2.01), r"true.nii.gz has spacing \[1.0, 1.0, 2.0\] but .*predicted.nii.gz has"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    reference_file = write_nifti(tmp_path / "true.nii.gz", np.zeros((4, 9, 8), dtype=np.uint8), (1, 1, 2))
    prediction_file = write_nifti(tmp_path / "predicted.nii.gz", np.zeros(shape, dtype=np.uint8), spacing)
    with pytest.raises(ValueError, match=message):
        case_metrics(reference_file, prediction_file, SimpleITKIO(), [1])


def test_rounded_spacing_is_accepted(tmp_path: Path) -> None:
    seg = label_map(0, (4, 9, 8), 1)
    reference_file = write_nifti(tmp_path / "true.nii.gz", seg, (1, 1, 2))
    prediction_file = write_nifti(tmp_path / "predicted.nii.gz", seg, (1, 1, 2.001))
    assert case_metrics(reference_file, prediction_file, SimpleITKIO(), [1])["metrics"][1]["Dice"] == 1


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (1, 2, r"predicted.png holds 2, but the declared labels are \[0, 1\]"),
        (1, 9, r"predicted.png holds 9, but the declared labels are \[0, 1\]"),  # the ignore label
        (3, 1, r"true.png holds 3, but the declared labels are \[0, 1, 9\]"),
    ],
)
def test_undeclared_labels(tmp_path: Path, true: int, predicted: int, message: str) -> None:
    reference_file = write_png(tmp_path / "true.png", np.full((8, 9), true, dtype=np.uint8))
    prediction_file = write_png(tmp_path / "predicted.png", np.full((8, 9), predicted, dtype=np.uint8))
    with pytest.raises(ValueError, match=message):
        case_metrics(reference_file, prediction_file, NaturalImage2DIO(), [1], ignore_label=9)


def test_labels_that_are_declared_but_not_evaluated(tmp_path: Path) -> None:
    file = write_png(tmp_path / "case.png", label_map(0, (20, 17), 3))
    assert list(case_metrics(file, file, NaturalImage2DIO(), [1], None, {1, 2, 3})["metrics"]) == [1]
    with pytest.raises(ValueError, match="case.png holds 2, 3"):
        case_metrics(file, file, NaturalImage2DIO(), [1])


def test_unreadable_files(tmp_path: Path) -> None:
    file = write_png(tmp_path / "case.png", np.zeros((8, 9), dtype=np.uint8))
    with pytest.raises(FileNotFoundError, match="absent.png does not exist"):
        case_metrics(file, tmp_path / "absent.png", NaturalImage2DIO(), [1])
    colour = write_png(tmp_path / "colour.png", np.zeros((8, 9, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="colour.png is no label map"):
        case_metrics(file, colour, NaturalImage2DIO(), [1])


@pytest.mark.slow
def test_several_processes_keep_the_order(tmp_path: Path) -> None:
    files = []
    for number in range(8):
        seg = np.zeros((8, 9), dtype=np.uint8)
        seg.flat[:number] = 1
        files.append(write_png(tmp_path / f"case_{number}.png", seg))
    healthy = files[0]
    todo = [(file.stem, file, healthy) for file in reversed(files)]
    results = folder_metrics(todo, NaturalImage2DIO(), [1], None, n_processes=2)
    assert [case["case"] for case in results] == [f"case_{number}" for number in range(7, -1, -1)]
    assert [case["metrics"][1]["n_ref"] for case in results] == list(range(7, -1, -1))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """References and predictions of four cases; label 3 is nowhere, one case is healthy."""
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    for folder, first_seed in ((reference, 0), (prediction, 10)):
        folder.mkdir()
        for number in range(3):
            write_png(folder / f"case_{number}.png", label_map(first_seed + number, (18, 15), 2))
        write_png(folder / "healthy.png", np.zeros((18, 15), dtype=np.uint8))
    return reference, prediction


def evaluate(folders: tuple[Path, Path], output: Path | None, labels: list[Any], **options: Any) -> dict[str, Any]:
    names = [str(folder) for folder in folders]
    target = None if output is None else str(output)
    return metrics_on_folder(names[0], names[1], target, NaturalImage2DIO(), ".png", labels, num_processes=1, **options)


def assert_extends(summary: dict[str, Any], expected: dict[str, Any]) -> None:
    """Everything that nnU-Net's summary holds is in ours, at the same place and with the same value."""
    assert expected.keys() <= summary.keys() and summary["mean"].keys() == expected["mean"].keys()
    pairs = [(summary["mean"][item], expected["mean"][item]) for item in expected["mean"]]
    pairs.append((summary["foreground_mean"], expected["foreground_mean"]))
    for case, expected_case in zip(summary["metric_per_case"], expected["metric_per_case"], strict=True):
        assert expected_case.keys() <= case.keys() and case["metrics"].keys() == expected_case["metrics"].keys()
        for file in ("reference_file", "prediction_file"):
            assert expected_case[file].endswith(case[file])
        pairs += [(case["metrics"][item], expected_case["metrics"][item]) for item in expected_case["metrics"]]
    for metrics, expected_metrics in pairs:
        shared = {name: metrics[name] for name in expected_metrics}
        assert shared == pytest.approx(expected_metrics, rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize("labels", [[1, 2], [(1, 2), (2,)]])
def test_folder_equals_nnunet(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any]
) -> None:
    names = [str(folder) for folder in folders]
    context = SimpleNamespace(Pool=ThreadPool)  # starts at once
    monkeypatch.setattr(evaluate_predictions.multiprocessing, "get_context", lambda method: context)
    theirs_file, ours_file = tmp_path / "theirs.json", tmp_path / "ours.json"
    theirs = compute_metrics_on_folder(*names, str(theirs_file), NaturalImage2DIO(), ".png", labels, num_processes=1)
    ours = evaluate(folders, ours_file, labels)
    assert_extends(ours, theirs)
    assert_extends(load_summary_json(str(ours_file)), load_summary_json(str(theirs_file)))


def test_signature_is_nnunets() -> None:
    ours, theirs = inspect.signature(metrics_on_folder), inspect.signature(compute_metrics_on_folder)
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.default, p.kind) for p in theirs.parameters.values()
    ]


def test_summary_says_how_many_cases_count(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        summary = evaluate(folders, target, [1, 2, 3])
    assert math.isnan(summary["mean"][3]["Dice"]) and summary["num_defined"]["mean"]["3"]["Dice"] == 0
    assert summary["num_defined"]["mean"]["1"]["Dice"] == 3  # the healthy case has no Dice
    assert summary["num_defined"]["mean"]["1"]["TN"] == 4
    dice = [case["metrics"][1]["Dice"] for case in summary["metric_per_case"][:3]]
    assert summary["mean"][1]["Dice"] == pytest.approx(np.mean(dice))
    means = [summary["mean"][item]["Dice"] for item in (1, 2)]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(means))
    assert summary["num_defined"]["foreground_mean"]["Dice"] == 2
    loaded = load_summary_json(str(target))
    assert loaded["num_defined"] == summary["num_defined"] and loaded["length_unit"] == "px"
    np.testing.assert_equal(loaded["mean"], summary["mean"])


def test_background_is_no_foreground(folders: tuple[Path, Path]) -> None:
    summary = evaluate(folders, None, [0, 1, 2])
    means = [summary["mean"][item]["Dice"] for item in (1, 2)]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(means))


def test_no_cases() -> None:
    with pytest.raises(ValueError, match="no cases to summarise"):
        summarise([], [1])


def test_failed_writing_keeps_the_old_summary(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    summary = evaluate(folders, target, [1, 2])
    before = target.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        save_summary(summary | {"foreground_mean": {"Dice": object()}}, target)
    assert target.read_text(encoding="utf-8") == before and json.loads(before)
    assert {path.name for path in tmp_path.iterdir()} == {"reference", "prediction", "summary.json"}


def test_incomplete_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[1] / "case_1.png").unlink()
    assert len(evaluate(folders, None, [1, 2])["metric_per_case"]) == 3
    with pytest.raises(FileNotFoundError, match="prediction lacks predictions of 1 cases of .*: case_1.png"):
        evaluate(folders, None, [1, 2], chill=False)
    (folders[0] / "case_2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"reference.case_2.png does not exist"):
        evaluate(folders, None, [1, 2])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no prediction \(\*.png\) in .*empty"):
        evaluate((folders[0], empty), None, [1, 2])
