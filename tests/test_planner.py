"""Planners, on tiny data sets and through nnU-Net's own planning and preprocessing."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunet_runs import plan, plan_and_preprocess, write_dataset

from braintum_commands import __version__
from braintum_planner.planners import BrainTumPlanner
from dataset_conversion.cases import ClassSchema


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
    ("memory_limit", "dataset_limit", "is_2d", "num_classes", "expected"),
    [
        (100, 3, True, 3, 12),  # small 2-D set: the class minimum
        (100, 3, True, 5, 20),  # four cases a class
        (100, 40, True, 3, 40),  # large 2-D set: nnU-Net's 5 % rule
        (8, 3, True, 3, 8),  # memory decides
        (1, 1, True, 3, 2),  # nnU-Net's own minimum
        (100, 3, True, None, 3),  # nothing to classify
        (10, 3, False, 3, 3),  # 3-D: nnU-Net's rule
    ],
)
def test_batch_size(memory_limit: int, dataset_limit: int, is_2d: bool, num_classes: int | None, expected: int) -> None:
    planner = object.__new__(BrainTumPlanner)
    planner.UNet_min_batch_size = 2
    planner.class_schema = None if num_classes is None else ClassSchema(tuple("abcde"[:num_classes]))
    assert planner._batch_size(memory_limit, dataset_limit, is_2d) == expected


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


def test_3d_data_gets_3d_and_2d_plans(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=(16, 32, 32))
    plans = load(
        nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7, overwrite_target_spacing=(2, 2, 2))}.json"
    )
    assert set(plans["configurations"]) >= {"2d", "3d_fullres"}
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "BrainTumLightPlans_3d_fullres"
    assert plans["configurations"]["2d"]["batch_size"] >= 12


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


def test_segmentation_only_data_is_planned_without_classes(nnunet_folders: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7)
    dataset_json = load(raw / "dataset.json")
    del dataset_json["classification"]
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    (raw / "cases.csv").unlink()
    assert "classification" not in load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7)}.json")


def test_regions_are_noted_in_the_plans(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, labels={"background": 0, "whole": [1, 2], "core": 2})
    plans = load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7)}.json")
    assert plans["classification"]["region_based"] is True


def test_median_shape_is_not_changed_by_the_completed_spacing(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, shape=(48, 32))
    plans = load(nnunet_folders.preprocessed / "Dataset007_Tiny" / f"{plan(7, overwrite_target_spacing=(2, 2))}.json")
    assert np.allclose(plans["configurations"]["2d"]["median_image_size_in_voxels"], [48, 32])
