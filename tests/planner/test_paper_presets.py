"""The papers' planner presets: what they plan, for which trainers, and the memory that they promise."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_runs import write_dataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from braintum.architectures.networks.attention_unet import AttentionUNet
from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.commands.lookup import load_classes
from braintum.planner.planning import presets
from braintum.planner.planning.memory import planned_network
from braintum.trainers import registered
from braintum.trainers.recipes.recipe import RECIPES, PaperPlans
from braintum.trainers.systems import SYSTEMS

PLANNERS = {
    "BrainTumPlannerBrainTumNet": presets.BRAINTUMNET,
    "BrainTumPlannerJointUNet": presets.JOINT_UNET,
    "BrainTumPlannerResSELKA": presets.RESSE_LKA,
    "BrainTumPlannerResidualUNet": presets.RESIDUAL_UNET,
    "BrainTumPlannerBr35H": presets.BR35H_UNET,
}
CALIBRATED = [name for name in PLANNERS if name != "BrainTumPlannerBr35H"]  # whose network is paper 001's
TRAINERS = (
    *("nnUNetTrainerBrainTumNet", "nnUNetTrainerJointUNet", "nnUNetTrainerAttentionUNet", "nnUNetTrainerResSELKA"),
    *("nnUNetTrainerResidualUNet", "nnUNetTrainerMultiTask"),
)
SLICES = [[1, 256, 256]] * 2000
VOLUMES = [[120, 160, 160]] * 200


def plan_shapes(folders: Any, planner: str, shapes: list[list[int]], **options: Any) -> dict[str, Any]:
    """Plans of a data set of which only nnU-Net's fingerprint matters; as JSON gives them back."""
    raw = write_dataset(folders.raw, 7, shape=(8, 8) if shapes[0][0] == 1 else (8, 8, 8))
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    if "channel_name" in options:
        dataset_json["channel_names"] = {"0": options.pop("channel_name")}
    if not options.pop("classes", True):
        del dataset_json["classification"]
    (raw / "dataset.json").write_text(json.dumps({**dataset_json, "numTraining": len(shapes)}))
    intensities = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    content = {
        "spacings": [[999.0 if shapes[0][0] == 1 else 1.0, 1.0, 1.0]] * len(shapes),
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    file = folders.preprocessed / raw.name / "dataset_fingerprint.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    planner_class: Any = load_classes("planners")[planner]
    plans = planner_class(7, **options).plan_experiment()
    return json.loads((file.parent / f"{plans['plans_name']}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("planner", "features", "batch", "scheme", "norm", "network"),
    [
        ("BrainTumPlannerBrainTumNet", [32, 64, 128, 256, 512, 512, 512], 16, "RescaleTo01", "InstanceNorm2d", "Res"),
        ("BrainTumPlannerJointUNet", [64, 128, 256, 512, 1024], 16, "RescaleTo01", "BatchNorm2d", "Plain"),
        ("BrainTumPlannerResSELKA", [32, 64, 128, 256, 512], 8, "PercentileZScore", "BatchNorm2d", "Res"),
        ("BrainTumPlannerResidualUNet", [16, 32, 64, 128, 256], 32, "RescaleTo01", "BatchNorm2d", "Res"),
        ("BrainTumPlannerBr35H", [64, 128, 256, 512, 1024], 50, "RescaleTo01", "BatchNorm2d", "Plain"),
    ],
)
def test_what_the_papers_state(
    nnunet_folders: Any, planner: str, features: list[int], batch: int, scheme: str, norm: str, network: str
) -> None:
    shapes = [[1, 512, 448]] * 2000  # whatever the data's size, the network gets the paper's
    plans = plan_shapes(nnunet_folders, planner, shapes)
    flat = plans["configurations"]["2d"]
    arguments = flat["architecture"]["arch_kwargs"]
    edge = PLANNERS[planner].slice_edge
    assert edge == (128 if planner == "BrainTumPlannerResSELKA" else 256)
    assert flat["patch_size"] == [edge, edge] and flat["slice_edge"] == edge
    assert flat.get("slice_crop", True) == (planner in ("BrainTumPlannerBrainTumNet", "BrainTumPlannerResSELKA"))
    assert arguments["features_per_stage"] == features
    assert arguments["norm_op"].endswith(f".{norm}")
    assert arguments["nonlin"] == ("torch.nn.LeakyReLU" if norm == "InstanceNorm2d" else "torch.nn.ReLU")
    assert flat["architecture"]["network_class_name"].split(".")[-1].startswith(network)  # one of nnU-Net's own
    assert flat["normalization_schemes"] == [f"{scheme}Normalization"]
    assert flat["batch_size"] == batch
    decisions = plans["braintum_decisions"]
    paper = PLANNERS[planner].paper
    assert decisions["data"]["normalization of T1ce"] == f"{scheme}Normalization, as {paper} has it"
    assert paper in decisions["2d"]["batch"]
    manager = PlansManager(plans)
    parameters = {}
    for name, system in SYSTEMS.items():
        if system.parameters is not None and system.recipe.plans is not None and system.recipe.plans.planner == planner:
            with torch.device("meta"):
                network_of_paper: Any = system.network(manager, manager.get_configuration("2d"), 1, 2, False)
            parameters[name] = sum(parameter.numel() for parameter in network_of_paper.parameters())
    assert parameters and parameters == {name: SYSTEMS[name].parameters for name in parameters}


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.plans is not None])
def test_recipes_name_the_plans_that_the_planner_makes(name: str) -> None:
    wanted: Any = RECIPES[name].plans
    preset = load_classes("planners")[wanted.planner].preset
    assert wanted == PaperPlans(wanted.planner, preset.plans_name, preset.batch_size_2d, preset.slice_edge)


def test_the_memory_decides_over_the_papers_batch(nnunet_folders: Any) -> None:
    plans = plan_shapes(nnunet_folders, "BrainTumPlannerJointUNet", SLICES, gpu_memory_target_in_gb=2.0)
    size = plans["configurations"]["2d"]["batch_size"]
    assert 2 <= size < 16
    assert plans["braintum_decisions"]["2d"]["batch"].startswith(f"batch {size} because 2 GB hold no more")


def test_the_data_set_decides_over_the_papers_normalisation(nnunet_folders: Any) -> None:
    plans = plan_shapes(nnunet_folders, "BrainTumPlannerJointUNet", SLICES, channel_name="zscore")
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["ZScoreNormalization"]


@pytest.mark.parametrize("planner", ["BrainTumPlannerJointUNet", "BrainTumPlannerResSELKA"])
def test_volumes_get_instance_norm_and_nnunets_depth(nnunet_folders: Any, planner: str) -> None:
    plans = plan_shapes(nnunet_folders, planner, VOLUMES)
    volume, flat = (plans["configurations"][name] for name in ("3d_fullres", "2d"))
    for configuration, norm, smallest in (
        (volume, "instancenorm.InstanceNorm3d", 4),
        (flat, "batchnorm.BatchNorm2d", PLANNERS[planner].smallest_edge_2d),
    ):
        arguments = configuration["architecture"]["arch_kwargs"]
        assert arguments["norm_op"].endswith(norm)
        deepest = np.array(configuration["patch_size"]) // np.prod(arguments["strides"], 0)
        assert (smallest <= deepest).all() and (deepest < 3 * smallest).all()
        assert (deepest >= 2 * smallest).sum() <= 1  # nnU-Net halves a single axis from three times the smallest on


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [2.0, 12.0])
@pytest.mark.parametrize("planner", CALIBRATED)
def test_the_memory_target_is_kept(nnunet_folders: Any, planner: str, gigabytes: float) -> None:
    """Parameters and feature maps of the paper's network, counted here anew, fill the target and no more."""
    shapes = [[1, 1024, 1024]] * 6000
    preset = PLANNERS[planner]
    plans = plan_shapes(nnunet_folders, planner, shapes, gpu_memory_target_in_gb=gigabytes)
    flat = plans["configurations"]["2d"]
    network: Any = planned_network(flat["architecture"], 1, 2, plans["classification"], preset.trained_network)
    assert type(network) is preset.trained_network
    per_patch = (
        network.compute_conv_feature_map_size(tuple(flat["patch_size"])) * 8e9 / (135e6 * 12)  # nnU-Net's 8 GB
    ) * (preset.calibration)
    parameters = 16 * sum(parameter.numel() for parameter in network.parameters())
    used = parameters + per_patch * flat["batch_size"]
    assert used < gigabytes * 1e9 + per_patch / 2  # nnU-Net rounds the batch
    if flat["batch_size"] != preset.batch_size_2d:
        assert used > 0.8 * gigabytes * 1e9


@pytest.mark.slow
def test_parameters_that_fill_the_memory_are_refused(nnunet_folders: Any) -> None:
    with pytest.raises(
        ValueError, match=r"not even a patch of .* fits 0.003 GB; plan with a larger -gpu_memory_target"
    ):
        plan_shapes(nnunet_folders, "BrainTumPlannerBrainTumNet", SLICES, gpu_memory_target_in_gb=0.003)


def test_without_classes_the_papers_network_counts_all_the_same(nnunet_folders: Any) -> None:
    plans = plan_shapes(nnunet_folders, "BrainTumPlannerBrainTumNet", SLICES, classes=False)
    assert "classification" not in plans
    architecture = plans["configurations"]["2d"]["architecture"]
    assert isinstance(planned_network(architecture, 1, 2, None, BrainTumNet), BrainTumNet)
    assert not hasattr(planned_network(architecture, 1, 2, None, AttentionUNet), "classification_head")


@pytest.mark.slow
@pytest.mark.parametrize("planner", CALIBRATED)
def test_plans_suit_nnunet_and_every_trainer(nnunet_folders: Any, planner: str) -> None:
    plans = plan_shapes(nnunet_folders, planner, [[24, 48, 48]] * 20)
    manager = PlansManager(plans)
    for name in ("2d", "3d_fullres"):
        configuration = manager.get_configuration(name)
        patch_size = configuration.patch_size
        for trainer in [nnUNetTrainer, *(getattr(registered, trainer) for trainer in TRAINERS)]:
            with torch.device("meta"):
                network: nn.Module = trainer.build_network_architecture(manager, configuration, 1, 2, False)
            with torch.no_grad():
                segmentation = network.eval()(torch.empty(1, 1, *patch_size, device="meta"))
            assert segmentation.shape == (1, 2, *patch_size), trainer.__name__


# ---------------------------------------------------------------------- the measurements behind the presets


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [(64, 64), (32, 32, 32)], ids=["2d", "3d"])
def test_held_memory_is_the_allocators(benchmark_scripts: None, patch_size: tuple[int, ...]) -> None:
    from memory_calibration import Case, step_of
    from training_steps import TrainingStep, fake_step, peak_of_fake, peak_of_real

    case = Case(patch_size, 4 if len(patch_size) == 2 else 1)
    arguments = ("nnUNetTrainerResSELKA", presets.RESSE_LKA, case)
    fake = peak_of_fake(step_of(fake_step, *arguments))
    assert fake == pytest.approx(peak_of_real(step_of(TrainingStep, *arguments)), rel=0.05)


def test_held_memory_by_hand(benchmark_scripts: None) -> None:
    from training_steps import HeldMemory

    weights = torch.zeros(10)
    with HeldMemory([weights, weights.view(2, 5)]) as memory:
        first = weights + 1
        second = first.view(5, 2) * 2  # a view holds nothing of its own
        del first
        third = torch.zeros(5)
        assert memory.held == 4 * (10 + 10 + 5) == memory.held
        del second, third
    assert memory.held == 40
    assert memory.peak == 4 * 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "preset"),
    [
        ("nnUNetTrainerBrainTumNet", presets.BRAINTUMNET),
        pytest.param("nnUNetTrainerJointUNet", presets.JOINT_UNET, marks=pytest.mark.thorough),
        ("nnUNetTrainerResSELKA", presets.RESSE_LKA),
        pytest.param("nnUNetTrainerResidualUNet", presets.RESIDUAL_UNET, marks=pytest.mark.thorough),
    ],
)
def test_planned_memory_is_the_measured_one(benchmark_scripts: None, trainer: str, preset: Any) -> None:
    """On a patch that benchmarks/networks/memory_calibration.py neither fits nor checks."""
    from memory_calibration import Case, measured_peak, planned_bytes

    case = Case((224, 192), 5, 3, 2)
    planned = planned_bytes(preset, case, "cpu")
    assert planned == pytest.approx(measured_peak(trainer, preset, case, "cpu"), rel=0.15)


@pytest.mark.slow
def test_cost_of_networks(benchmark_scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import network_cost

    arguments = ["network_cost.py", "-patch", "32", "32", "-batch", "2", "-n", "1", "-threads", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "-tr", "nnUNetTrainerJointUNet", "-o", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        network_cost.main()
    finally:
        torch.set_num_threads(threads)
    lines = (tmp_path / "network_cost.csv").read_text(encoding="utf-8").splitlines()
    names, *rows = [line.split(",") for line in lines]
    table = {row[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert list(table) == ["PlainConvUNet", "ResidualEncoderUNet", "JointUNet"]
    plain, joint = table["PlainConvUNet"], table["JointUNet"]
    assert joint["parameters"] > plain["parameters"]
    assert joint["parameters / plain"] == pytest.approx(joint["parameters"] / plain["parameters"])
    assert plain["multiply-adds"] == pytest.approx(plain_multiply_adds())
    assert all(row["seconds"] > 0 and row["peak bytes"] > 12 * row["parameters"] * 0.6 for row in table.values())


def plain_multiply_adds() -> float:
    """Of nnU-Net's U-Net for 32 x 32: four levels of two convolutions, 32 to 256 features, heads at three scales."""
    features, edges = (32, 64, 128, 256), (32, 16, 8, 4)
    total, previous = 0, 1
    for width, edge in zip(features, edges, strict=True):
        total += 9 * edge**2 * width * (previous + width)
        previous = width
    for level in (2, 1, 0):
        width, edge = features[level], edges[level]
        total += edge**2 * width * features[level + 1]  # transposed convolution of 2 x 2, stride 2: 1 tap an output
        total += 9 * edge**2 * width * (2 * width + width)
        total += edge**2 * width * 2
    return float(total)
