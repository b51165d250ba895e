"""Planners, on tiny data sets and through nnU-Net's own planning and preprocessing."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunet_runs import plan, plan_and_preprocess, write_dataset

from braintum.commands.version import __version__
from braintum.conversion.building.slices import RESCALED_VOLUMES
from braintum.planner.planners import (
    BrainTumPlanner,
    BrainTumPlanner25D,
    BrainTumPlannerBrainTumNet,
    BrainTumPlannerLight,
    BrainTumPlannerResSELKA,
)
from braintum.planner.planning.decisions import batch_size
from braintum.planner.planning.memory import feature_map_elements, planned_network
from braintum.planner.planning.presets import LIGHT, MEDIUM, MemoryReference


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_stock_and_our_plans_coexist(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7)
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    plan_and_preprocess(7, "nnUNetPlannerResEncM")
    stock_plans, stock_data = load(folder / "nnUNetResEncUNetMPlans.json"), digests(folder / "nnUNetPlans_2d")
    assert plan_and_preprocess(7, "BrainTumPlanner") == "BrainTumPlans"
    assert plan_and_preprocess(7, "BrainTumPlannerLight", overwrite_plans_name="at4mm", overwrite_target_spacing=(4, 4))
    ours = digests(folder / "BrainTumPlans_2d")
    assert load(folder / "nnUNetResEncUNetMPlans.json") == stock_plans
    assert digests(folder / "nnUNetPlans_2d") == stock_data and len(stock_data) == 3 * 8
    assert len(digests(folder / "BrainTum_at4mm_2d")) == 3 * 8
    plan_and_preprocess(7, "nnUNetPlannerResEncM")  # and stock planning again leaves ours alone
    assert digests(folder / "BrainTumPlans_2d") == ours

    plans = load(folder / "BrainTumPlans.json")
    assert plans["classification"] == {
        "class_names": ["meningioma", "glioma", "no_tumor"],
        "negative_class": "no_tumor",
        "region_based": False,
    }
    assert plans["braintum_version"] == __version__
    assert plans["configurations"]["2d"]["data_identifier"] == "BrainTumPlans_2d"
    assert (folder / "cases.csv").read_bytes() == (nnunet_folders.raw / "Dataset007_Tiny" / "cases.csv").read_bytes()
    stock_batch = stock_plans["configurations"]["2d"]["batch_size"]
    assert stock_batch < plans["configurations"]["2d"]["batch_size"] == 12


@pytest.mark.parametrize(
    ("memory_limit", "dataset_limit", "is_2d", "num_classes", "expected", "reason"),
    [
        (100, 3, True, 2, 12, "a classifier needs 12 cases at least"),
        (100, 3, True, 5, 20, "5 classes need 4 cases each"),
        (100, 40, True, 3, 40, "5 % of the data set"),
        (8, 3, True, 3, 8, "8 GB hold no more; without that limit: 12, as 3 classes"),
        (1, 1, True, 3, 2, "that is nnU-Net's minimum"),
        (100, 3, True, 0, 3, "5 % of the data set"),  # nothing to classify
        (10, 3, False, 3, 3, "5 % of the data set"),  # 3-D: nnU-Net's rule
    ],
)
def test_batch_size(
    memory_limit: int, dataset_limit: int, is_2d: bool, num_classes: int, expected: int, reason: str
) -> None:
    size, text = batch_size(
        MEDIUM,
        memory_limit=memory_limit,
        dataset_limit=dataset_limit,
        num_classes=num_classes,
        is_2d=is_2d,
        smallest=2,
        gigabytes=8,
    )
    assert size == expected
    assert text.startswith(f"batch {expected} because {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("file_ending", [".nii.gz", ".png"])
@pytest.mark.parametrize("values", [(4, 4), (0.1, 4, 4)], ids=["two", "three"])
def test_target_spacing_of_2d_data(nnunet_folders: Any, file_ending: str, values: tuple[float, ...]) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=(64, 64), file_ending=file_ending)
    plans = load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7, overwrite_target_spacing=values)}.json")
    assert list(plans["configurations"]) == ["2d"]
    configuration = plans["configurations"]["2d"]
    assert configuration["spacing"] == [4, 4]
    edge = 64 // 4 if file_ending == ".png" else 64 * 2 // 4
    assert configuration["patch_size"] == [edge, edge]
    assert plans["transpose_forward"] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ((32, 32), (4,), "2-D: -overwrite_target_spacing takes two values"),
        ((32, 32), (4, -1), "positive numbers"),
        ((32, 32), (4, float("nan")), "positive numbers"),
        ((16, 32, 32), (4, 4), "3-D: -overwrite_target_spacing takes three values"),
    ],
)
def test_bad_target_spacing(nnunet_folders: Any, shape: tuple[int, ...], values: tuple, message: str) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=shape)
    with pytest.raises(ValueError, match=message):
        plan(7, overwrite_target_spacing=values)


@pytest.mark.slow
def test_3d_data_gets_3d_and_2d_plans(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=(16, 32, 32))
    plans = load(
        nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7, overwrite_target_spacing=(2, 2, 2))}.json"
    )
    assert set(plans["configurations"]) >= {"2d", "3d_fullres"}
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "BrainTumLightPlans_3d_fullres"
    assert plans["configurations"]["2d"]["batch_size"] >= 12


@pytest.mark.slow
def test_what_stands_in_the_way_is_named(nnunet_folders: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7)
    preprocessed = nnunet_folders.preprocessed / "Dataset007_Tiny"
    plan(7, "nnUNetPlannerResEncM")
    stock = (preprocessed / "nnUNetResEncUNetMPlans.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"nnUNetResEncUNetMPlans.json was written by nnUNetPlannerResEncM.*another name"
    ):
        plan(7, overwrite_plans_name="nnUNetResEncUNetMPlans")
    assert (preprocessed / "nnUNetResEncUNetMPlans.json").read_bytes() == stock

    splits = load(raw / "splits_final.json")
    (raw / "splits_final.json").write_text(json.dumps(splits[::-1]))
    with pytest.raises(ValueError, match=r"splits_final.json differs from .*splits_final.json.*delete the latter"):
        plan(7)
    (raw / "splits_final.json").write_text(json.dumps(splits[:1]))  # nnU-Net allows more folds in the copy
    plan(7)

    cases = (raw / "cases.csv").read_text(encoding="utf-8")
    (raw / "cases.csv").write_text(cases.replace("glioma", "gliosis"))
    with pytest.raises(ValueError, match=r"cases.csv, line 3: unknown class 'gliosis'.*meningioma, glioma, no_tumor"):
        plan(7)


@pytest.mark.slow
def test_segmentation_only_data_is_planned_without_classes(nnunet_folders: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7)
    dataset_json = load(raw / "dataset.json")
    del dataset_json["classification"]
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    (raw / "cases.csv").unlink()
    assert "classification" not in load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7)}.json")


@pytest.mark.slow
def test_regions_are_noted_in_the_plans(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, labels={"background": 0, "whole": [1, 2], "core": 2})
    plans = load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7)}.json")
    assert plans["classification"]["region_based"] is True


@pytest.mark.slow
def test_median_shape_is_not_changed_by_the_completed_spacing(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=(48, 32))
    plans = load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7, overwrite_target_spacing=(2, 2))}.json")
    assert np.allclose(plans["configurations"]["2d"]["median_image_size_in_voxels"], [48, 32])


def write_fingerprint(folders: Any, shapes: list[list[int]], spacing: list[float]) -> None:
    """A data set of which only nnU-Net's fingerprint matters: planning reads no image but the first."""
    raw = write_dataset(folders.raw, 7, shape=(8, 8) if shapes[0][0] == 1 else (8, 8, 8))
    dataset_json = load(raw / "dataset.json")
    (raw / "dataset.json").write_text(json.dumps({**dataset_json, "numTraining": len(shapes)}))
    intensities = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    file = folders.preprocessed / raw.name / "dataset_fingerprint.json"
    file.parent.mkdir()
    content = {
        "spacings": [spacing] * len(shapes),
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    file.write_text(json.dumps(content))


def plan_shapes(folders: Any, shapes: list[list[int]], planner: Any, **options: Any) -> dict[str, Any]:
    write_fingerprint(folders, shapes, [999.0, 1.0, 1.0] if shapes[0][0] == 1 else [3.0, 1.0, 1.0])
    return planner(7, **options).plan_experiment()


@pytest.mark.parametrize(
    ("shapes", "patch", "reason"),
    [
        ([[1, 256, 224]] * 600, (256, 224), "it covers every image"),
        ([[1, 256, 256]] * 300 + [[1, 320, 288]] * 200, (320, 320), "it covers every image"),
        ([[1, 256, 256]] * 590 + [[1, 900, 900]] * 10, (256, 256), "it covers the slices up to the 95th percentile"),
        ([[1, 1100, 1100]] * 600, (512, 512), "more does not fit the memory"),
    ],
    ids=["one-size", "largest", "few-outliers", "too-large"],
)
def test_2d_patch_covers_slices(nnunet_folders: Any, shapes: list, patch: tuple[int, int], reason: str) -> None:
    plans = plan_shapes(nnunet_folders, shapes, BrainTumPlanner)
    assert f"because {reason}" in plans["braintum_decisions"]["2d"]["patch"]
    configuration = plans["configurations"]["2d"]
    assert tuple(configuration["patch_size"]) == patch
    assert configuration["batch_size"] >= 12
    assert list(configuration["median_image_size_in_voxels"]) == np.median(shapes, 0)[1:].tolist()


@pytest.mark.parametrize("gigabytes", [4, 8, 24])
def test_memory_target_is_kept_with_the_head(nnunet_folders: Any, gigabytes: float) -> None:
    plans = plan_shapes(
        nnunet_folders, [[1, 512, 512]] * 6000, BrainTumPlanner, gpu_memory_target_in_gb=float(gigabytes)
    )
    configuration = plans["configurations"]["2d"]
    networks = [
        planned_network(configuration["architecture"], 1, 2, entry) for entry in (plans["classification"], None)
    ]
    with_head, without_head = (feature_map_elements(network, configuration["patch_size"]) for network in networks)
    assert with_head > without_head
    available = (
        MEDIUM.reference_2d.elements * gigabytes / MEDIUM.reference_2d.gigabytes * MEDIUM.reference_2d.batch_size
    )
    used = with_head * configuration["batch_size"]
    assert available * 0.8 < used < available + with_head / 2  # nnU-Net rounds the batch


@dataclasses.dataclass(frozen=True)
class _Doubled:
    """A memory estimate of its own, as a network of another kind brings it."""

    factor: float

    def __call__(self, network: Any, patch_size: Any) -> float:
        return self.factor * feature_map_elements(network, patch_size)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_estimate": _Doubled(2.0)},
        {"calibration": 2.0},
        {"reference_2d": MemoryReference(135e6 / 2, 12, 8.0)},
        {"reference_2d": MemoryReference(135e6, 12, 16.0)},
        {"gpu_memory_gb": 4.0},
    ],
    ids=["estimate", "calibration", "reference", "gigabytes", "target"],
)
def test_a_preset_brings_its_own_memory(
    nnunet_folders: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrainTumPlannerLight, "preset", LIGHT)
    shapes = [[1, 256, 256]] * 6000
    write_fingerprint(nnunet_folders, shapes, [999.0, 1.0, 1.0])
    before = BrainTumPlannerLight(7).plan_experiment()["configurations"]["2d"]
    monkeypatch.setattr(BrainTumPlannerLight, "preset", dataclasses.replace(LIGHT, **changes))
    after = BrainTumPlannerLight(7).plan_experiment()["configurations"]["2d"]
    assert after["patch_size"] == before["patch_size"]
    assert after["batch_size"] == pytest.approx(before["batch_size"] / 2, abs=1)


def test_a_preset_brings_its_own_arguments(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = dataclasses.replace(LIGHT, arguments=lambda arguments: {**arguments, "conv_bias": False})
    monkeypatch.setattr(BrainTumPlannerLight, "preset", preset)
    plans = plan_shapes(nnunet_folders, [[1, 64, 64]] * 20, BrainTumPlannerLight)
    architecture = plans["configurations"]["2d"]["architecture"]
    assert architecture["arch_kwargs"]["conv_bias"] is False
    assert architecture["network_class_name"].endswith(".ResidualEncoderUNet")
    assert architecture["_kw_requires_import"]


def test_neighbouring_slices(nnunet_folders: Any) -> None:
    plans = plan_shapes(nnunet_folders, [[40, 128, 128]] * 20, BrainTumPlanner25D)
    flat, volume = plans["configurations"]["2d"], plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == "BrainTum25DPlans"
    assert (flat["neighbouring_slices"], flat["preprocessor_name"]) == (1, "BrainTumPreprocessor")
    assert plans["braintum_decisions"]["2d"]["input"].startswith("1 neighbouring slice(s) on each side")
    assert "neighbouring_slices" not in volume and volume["preprocessor_name"] == "BrainTumPreprocessor"
    assert set(plans["braintum_decisions"]) == {"data", "2d", "3d_fullres"}


def test_single_slices_have_no_neighbours(nnunet_folders: Any) -> None:
    with pytest.raises(ValueError, match="Dataset007_Tiny holds single slices, which have no neighbours"):
        plan_shapes(nnunet_folders, [[1, 64, 64]] * 20, BrainTumPlanner25D)


@pytest.mark.parametrize(
    ("planner", "channel_name", "scheme"),
    [
        (BrainTumPlannerLight, "T1ce", "VolumeRescaleTo01"),
        (BrainTumPlannerBrainTumNet, "T1ce", "VolumeRescaleTo01"),
        (BrainTumPlannerResSELKA, "T1ce", "PercentileZScore"),  # the paper's
        (BrainTumPlannerLight, "percentile_zscore", "PercentileZScore"),
    ],
)
def test_slices_of_rescaled_volumes_keep_their_scale(
    nnunet_folders: Any, planner: Any, channel_name: str, scheme: str
) -> None:
    write_fingerprint(nnunet_folders, [[1, 64, 64]] * 20, [999.0, 1.0, 1.0])
    file = nnunet_folders.raw / "Dataset007_Tiny" / "dataset.json"
    content = {**load(file), "channel_names": {"0": channel_name}, RESCALED_VOLUMES: True}
    file.write_text(json.dumps(content))
    plans = planner(7).plan_experiment()
    assert plans["configurations"]["2d"]["normalization_schemes"] == [f"{scheme}Normalization"]


@pytest.mark.parametrize(
    ("channel_name", "scheme"),
    [("T1ce", "ZScore"), ("CT", "CT"), ("rescale_to_0_1", "RescaleTo01"), ("percentile_zscore", "PercentileZScore")],
)
def test_normalisation_with_nnunets_fingerprint(nnunet_folders: Any, channel_name: str, scheme: str) -> None:
    write_fingerprint(nnunet_folders, [[1, 64, 64]] * 20, [999.0, 1.0, 1.0])
    file = nnunet_folders.raw / "Dataset007_Tiny" / "dataset.json"
    file.write_text(json.dumps({**load(file), "channel_names": {"0": channel_name}}))
    plans = BrainTumPlannerLight(7).plan_experiment()
    assert plans["configurations"]["2d"]["normalization_schemes"] == [f"{scheme}Normalization"]
    assert (
        "-fpe BrainTumFingerprintExtractor" in plans["braintum_decisions"]["data"][f"normalization of {channel_name}"]
    )
