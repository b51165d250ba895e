"""Any network by any recipe, under a name that says which; and what differs where the plans are not the paper's."""

import pickle
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tiny_training import TinyDataset, write_preprocessed
from trainer_steps import one_epoch, start

from braintum.commands.lookup import load_classes
from braintum.trainers import registered
from braintum.trainers.expectations import difference_from_paper
from braintum.trainers.recipes.recipe import RECIPES, classifier_recipe
from braintum.trainers.systems import SYSTEMS


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_seed", "1")
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def test_nnunet_finds_a_pair_by_its_name() -> None:
    found: Any = recursive_find_trainer_class_by_name("nnUNetTrainerUNet_ResSELKA")
    assert found is registered.trainer_named("nnUNetTrainerUNet_ResSELKA")
    assert found.recipe is RECIPES["ResSELKA"]
    unet = registered.trainer_named("nnUNetTrainerUNet")
    assert found.build_network_architecture is unet.build_network_architecture
    assert found.__name__ == "nnUNetTrainerUNet_ResSELKA" and issubclass(found, unet)
    assert pickle.loads(pickle.dumps(found)) is found  # as the processes of a distributed training get it


def test_all_pairs_are_reachable() -> None:
    pairs = registered.pairs()
    assert len(pairs) == len(set(pairs)) > 100
    assert {name.partition("_")[0] for name in pairs} == set(registered.__all__) - {
        "nnUNetTrainerBrainTumNetTwoStage",
        "nnUNetTrainerMaskedImages",
    }
    assert all(registered.trainer_named(name).__name__ == name for name in pairs)
    assert load_classes("trainers")["__getattr__"] is registered.__getattr__


def test_backbones_take_recipes_too() -> None:
    found: Any = registered.trainer_named("nnUNetTrainerPretrained_test_vit_JointUNet")
    assert found.backbone == "test_vit" and found.recipe is RECIPES["JointUNet"]


def test_a_classifier_follows_a_recipe_without_its_masks() -> None:
    found = registered.trainer_named("nnUNetTrainerClassifierUNet_BrainTumNet")
    assert found.recipe == classifier_recipe(RECIPES["BrainTumNet"])
    assert (found.recipe.segmentation_weight, found.recipe.class_weight) == (0.0, 1.0)


@pytest.mark.parametrize(
    "name",
    ["nnUNetTrainerUNet_Other", "nnUNetTrainerOther", "_Short", "nnUNetTrainerOther_Short", "UNet"]
    + ["nnUNetTrainerMaskedImages_Short", "nnUNetTrainerBrainTumNetTwoStage_Short"],
)
def test_other_names_are_none_of_ours(name: str) -> None:
    assert not hasattr(registered, name)


def test_a_papers_own_trainer_has_its_own_recipe() -> None:
    own = {"Br35HUNet": "Br35H", "ClassifierFTCNN": "FTCNN", "PlansNetwork": "nnUNet", "UNet": "JointUNet"}
    own |= {name: name for name in ("BrainTumNet", "JointUNet", "ResSELKA", "ResidualUNet")}
    assert all(SYSTEMS[name].recipe is RECIPES[recipe] for name, recipe in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnUNetTrainerAttentionUNet_ResSELKA", "nnUNetTrainerMultiTask_Br35H"])
def test_a_pair_trains_with_the_recipe_of_its_name(
    dataset: TinyDataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "1")
    trainer = start(dataset.trainer(name))
    recipe = RECIPES[name.rpartition("_")[2]]
    assert type(trainer.optimizer) is recipe.optimizer and trainer.num_epochs == recipe.num_epochs
    one_epoch(trainer)
    trainer.on_epoch_end()
    assert trainer.output_folder_base.endswith(f"{name}__{trainer.plans_manager.plans_name}__2d")


# ---------------------------------------------------------------------- plans that are not the paper's


def log_of(trainer: Any) -> str:
    with open(trainer.log_file, encoding="utf-8") as file:
        return file.read()


def test_warns_of_other_plans_than_the_papers(dataset: TinyDataset) -> None:
    trainer = start(dataset.trainer("nnUNetTrainerBrainTumNet"))
    log = " ".join(log_of(trainer).split())
    millions = sum(parameter.numel() for parameter in trainer.bare_network.parameters()) / 1e6
    assert f"{millions:.1f} M parameters (paper: {SYSTEMS['BrainTumNet'].parameters / 1e6:.1f} M)" in log  # type: ignore[operator]
    assert f"batches of {trainer.batch_size} (paper: 16), patches of 32 x 32 (paper: 256 x 256)" in log
    assert "nnUNetv2_plan_and_preprocess -d 7 -c 2d" in log
    assert "-pl BrainTumPlannerBrainTumNet; then train with -p BrainTumNetPlans" in log


def test_does_not_warn_of_the_papers_plans(dataset: TinyDataset) -> None:
    def difference(batch_size: int) -> str | None:
        configurations: Any = {"2d": {**dataset.plans["configurations"]["2d"], "batch_size": batch_size}}
        plans = {**dataset.plans, "experiment_planner_used": "BrainTumPlannerResidualUNet"}
        trainer = replace(dataset, plans={**plans, "configurations": configurations}).trainer(
            "nnUNetTrainerResidualUNet"
        )
        trainer.initialize()
        return difference_from_paper(trainer)

    assert difference(32) is None
    assert str(difference(31)).endswith("plan with a -gpu_memory_target that holds the batch")


def test_our_own_recipes_suit_any_plans(dataset: TinyDataset) -> None:
    assert "WARNING" not in log_of(start(dataset.trainer("nnUNetTrainerMultiTaskShort")))


# ---------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("name", "asked", "is_full"),
    [
        ("nnUNetTrainerUNet", "", False),
        ("nnUNetTrainerResSELKA", "", True),  # paper 002 says so
        ("nnUNetTrainerUNet", "float32", True),
        ("nnUNetTrainerResSELKA", "auto", False),
    ],
)
def test_precision_on_cuda(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, name: str, asked: str, is_full: bool
) -> None:
    monkeypatch.setenv("braintum_precision", asked)
    trainer = dataset.trainer(name)
    trainer.device = torch.device("cuda")
    assert isinstance(trainer.autocast(), nullcontext) == is_full
    stock: Any = stock_module
    with trainer.stocks_autocast():
        assert isinstance(stock.autocast("cuda", enabled=True), nullcontext) == is_full
    assert stock.autocast is torch.autocast
