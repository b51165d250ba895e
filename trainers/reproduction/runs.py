"""Runs the systems of a paper: plans, trainings, predictions of the test part, each left out where it is done."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braintum.commands.stages import Progress, Stages
from braintum.conversion.files.parallel import default_processes
from braintum.conversion.format.cases import FOLDER_ENDINGS
from braintum.conversion.format.label_names import named_labels, whole_tumour
from braintum.evaluation import api
from braintum.trainers.recipes.recipe import Recipe
from braintum.trainers.registered import trainer_named
from braintum.trainers.reproduction.registry import SPLIT_NAMES, SystemOfPaper

CONFIGURATION = "2d"
"""All papers train on slices."""

_NNUNET_ITERATIONS = 250


@dataclass(frozen=True)
class Run:
    """What is run, and where it lands.

    Attributes:
        dataset: as ``DatasetXXX_Name``.
        raw: its folder in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        out: takes the place of nnUNet_results: models of another length are other models.
        folds: that are trained.
        fraction: of the papers' epochs.
        device: such as ``cpu``.
        gpu_memory_target: of the planners, in GB; None for what the paper's batch takes.
    """

    dataset: str
    raw: Path
    preprocessed: Path
    out: Path
    folds: tuple[int, ...]
    fraction: float
    device: str
    gpu_memory_target: float | None = None

    @property
    def number(self) -> str:
        """Of the data set: nnU-Net's planning takes no name."""
        return str(int(self.dataset[7:10]))

    def model(self, system: SystemOfPaper, split: str) -> Path:
        """Folder of a model, by how its folds are made."""
        results = self.out if split == "patient" else self.out / f"split_by_{split}"
        return results / self.dataset / f"{system.trainer}__{plans_of(system)[1]}__{CONFIGURATION}"


@dataclass(frozen=True)
class Outcome:
    """Figures of a system.

    Attributes:
        summary: of the evaluation.
        whole: name of the label that holds all others.
    """

    summary: dict[str, Any]
    whole: str


def plans_of(system: SystemOfPaper) -> tuple[str, str]:
    """Planner and name of the plans of a system.

    Raises:
        ValueError: neither the paper nor the trainer's recipe says which.
    """
    if system.planner is not None and system.plans is not None:
        return system.planner, system.plans
    of_recipe = trainer_named(system.trainer).recipe.plans
    if of_recipe is None:
        raise ValueError(f"{system.trainer} goes with no plans in particular: name planner and plans in the registry")
    return of_recipe.planner, of_recipe.name


def shortened(recipe: Recipe, fraction: float) -> dict[str, str]:
    """Environment variables that give a training a fraction of its length.

    The least is one epoch; where an epoch is nnU-Net's iterations, a part of it.
    """
    epochs = recipe.num_epochs * fraction
    variables = {"braintum_num_epochs": str(max(1, round(epochs)))}
    if epochs < 1 and recipe.epoch == "iterations":
        variables["braintum_num_iterations_per_epoch"] = str(max(1, round(epochs * _NNUNET_ITERATIONS)))
    return variables


def run_system(run: Run, name: str, system: SystemOfPaper, splits: Sequence[str], stages: Stages) -> dict[str, Outcome]:
    """Plan, train and evaluate a system, as far as that is not done.

    Args:
        run: what and where.
        name: of the system in the paper.
        system: how it is trained.
        splits: by which folds are made, see :attr:`braintum.trainers.reproduction.registry.Reproduction.splits`.
        stages: of the command.

    Returns:
        Split → figures of its held-out images; ``test`` and ``external``: those of the data set's test parts, where it
        has them, by the models of the first split.

    Raises:
        CommandError: a stage failed.
    """
    _plan(run, system, stages)
    outcomes = {}
    for split in splits:
        for fold in run.folds:
            _train(run, name, system, split, fold, stages)
        with stages.stage("evaluate") as stage, stages.logged(f"evaluation of {name}"):
            found = api.evaluate_models(run.model(system, split), folds=run.folds)
            outcomes[split] = _outcome(run, found)
            stage.outcome = f"{name}, held-out images, {SPLIT_NAMES[split]}"
    for part, ending in FOLDER_ENDINGS.items():
        if part != "train" and any((run.raw / f"labels{ending}").glob("[!.]*")):
            outcomes[part] = _test(run, name, system, splits[0], stages, part)
    return outcomes


def _plan(run: Run, system: SystemOfPaper, stages: Stages) -> None:
    planner, plans = plans_of(system)
    file = run.preprocessed / f"{plans}.json"
    if file.is_file():
        plan = json.loads(file.read_text(encoding="utf-8"))["configurations"].get(CONFIGURATION)
        if plan is not None and (run.preprocessed / plan["data_identifier"]).is_dir():
            return
    processes = str(default_processes())
    with stages.stage("plan") as stage:
        stage.run(
            *("nnUNetv2_plan_and_preprocess", "-d", run.number, "-c", CONFIGURATION, "-pl", planner),
            *("-fpe", "BrainTumFingerprintExtractor", "-npfp", processes, "-np", processes, "--no_pbar"),
            *([] if run.gpu_memory_target is None else ["-gpu_memory_target", f"{run.gpu_memory_target:g}"]),
        )
        plan = json.loads(file.read_text(encoding="utf-8"))["configurations"][CONFIGURATION]
        patch = " × ".join(map(str, plan["patch_size"]))
        stage.outcome = f"{plans}: patch {patch}, batch {plan['batch_size']}"


def _train(run: Run, name: str, system: SystemOfPaper, split: str, fold: int, stages: Stages) -> None:
    folder = run.model(system, split) / f"fold_{fold}"
    if (folder / "validation" / "summary.json").is_file():
        return
    variables = shortened(trainer_named(system.trainer).recipe, run.fraction)
    epochs = int(variables["braintum_num_epochs"])

    def finished() -> int:
        logs = folder.glob("training_log_*.txt")
        return sum(log.read_text(encoding="utf-8", errors="replace").count("Epoch time: ") for log in logs)

    with stages.stage("train", Progress(epochs, "epochs", finished, "validating")) as stage:
        stage.run(
            *("nnUNetv2_train", run.dataset, CONFIGURATION, str(fold), "-p", plans_of(system)[1]),
            *("-tr", system.trainer, "-device", run.device, "--c"),
            **variables,
            braintum_split_by=split,
            nnUNet_results=str(run.out),
        )
        stage.outcome = f"{name}, fold {fold}, {SPLIT_NAMES[split]}: {finished()} of {epochs} epochs"


def _test(run: Run, name: str, system: SystemOfPaper, split: str, stages: Stages, part: str) -> Outcome:
    model = run.model(system, split)
    folds = tuple(map(str, run.folds))
    target, ending = model / f"{part}_{'_'.join(folds)}", FOLDER_ENDINGS[part]
    with stages.stage("test") as stage:
        if not (target / "summary.json").is_file():
            stage.run(
                *("braintum_predict", "-m", str(model), "-i", str(run.raw / f"images{ending}"), "-o", str(target)),
                *("-f", *folds, "-device", run.device, "--continue_prediction"),
                nnUNet_results=str(model.parents[1]),
            )
        with stages.logged(f"evaluation of {name} on the {part} part"):
            found = api.evaluate(target, run.raw / f"labels{ending}", cases=run.raw / "cases.csv")
        stage.outcome = f"{name}, images of the {part} part"
    return _outcome(run, found)


def _outcome(run: Run, found: api.Evaluation) -> Outcome:
    labels = named_labels(json.loads((run.raw / "dataset.json").read_text(encoding="utf-8")))
    return Outcome(found.summary, str(whole_tumour(labels)))
