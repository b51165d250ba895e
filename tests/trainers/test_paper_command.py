"""``braintum_paper``: what the registry names exists, runs go on where they stopped, tables say what they are of."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from braintum.commands.stages import Stage
from braintum.evaluation import api
from braintum.trainers.recipes.papers import PAPERS
from braintum.trainers.recipes.recipe import RECIPES
from braintum.trainers.registered import trainer_named
from braintum.trainers.reproduction import paper_cli
from braintum.trainers.reproduction.paper_cli import paper
from braintum.trainers.reproduction.registry import REPRODUCTIONS, Reproduction, mask, of_classes
from braintum.trainers.reproduction.runs import Outcome, plans_of, shortened
from braintum.trainers.reproduction.tables import NOTHING, paper_table, tables_text

SUMMARY: dict[str, Any] = {
    "segmentation": {
        "tumour": {
            "figures": {
                "all": {"Dice": {"value": 0.5, "sd": 0.125}, "IoU": {"value": 0.4, "sd": None}},
                "glioma": {"Dice": {"value": None}},
            }
        }
    },
    "classification": {
        "accuracy": {"value": 0.75},
        "per_class": {
            "glioma": {"f1": {"value": 0.8}, "sensitivity": {"value": 0.7}},
            "meningioma": {"sensitivity": {"value": 0.5}},
            "pituitary": {"sensitivity": {"value": None}},
        },
        "confusion_matrix": [[4, 1, 0], [0, 2, 1], [1, 0, 3]],
    },
}
OUTCOME = Outcome(SUMMARY, "tumour")


def test_all_papers_are_there() -> None:
    assert list(REPRODUCTIONS) == list(paper_cli._PAPERS) == [each.number for each in PAPERS]


@pytest.mark.parametrize("reproduction", REPRODUCTIONS.values(), ids=REPRODUCTIONS)
def test_registry(reproduction: Reproduction) -> None:
    for system in reproduction.systems.values():
        planner, plans = plans_of(system)
        assert trainer_named(system.trainer) and planner and plans
    listed = {name for table in reproduction.tables for name in table.published}
    assert set(reproduction.systems) <= listed
    for table in reproduction.tables:
        assert all(len(row) in (0, len(table.columns)) for row in table.published.values())


def test_baselines_follow_the_papers_recipe() -> None:
    recipes = {"000": "BrainTumNet", "002": "ResSELKA"}
    for number, recipe in recipes.items():
        unet = trainer_named(REPRODUCTIONS[number].systems["U-Net"].trainer)
        assert unet.recipe is RECIPES[recipe]


@pytest.mark.parametrize(
    ("recipe", "fraction", "expected"),
    [
        ("BrainTumNet", 0.02, {"braintum_num_epochs": "5"}),
        ("Br35H", 0.001, {"braintum_num_epochs": "1"}),
        ("nnUNet", 0.0002, {"braintum_num_epochs": "1", "braintum_num_iterations_per_epoch": "50"}),
        ("nnUNet", 1.0, {"braintum_num_epochs": "1000"}),
    ],
)
def test_fraction_of_a_training(recipe: str, fraction: float, expected: dict[str, str]) -> None:
    assert shortened(RECIPES[recipe], fraction) == expected


def test_table_has_our_figures_below_the_published_ones() -> None:
    reproduction = REPRODUCTIONS["001"]
    outcomes = {"JointU-Net": {"patient": OUTCOME, "image": OUTCOME}}
    masks, classes = (paper_table(table, outcomes) for table in reproduction.tables)
    assert masks[0] == ["system", "figures", "Dice", "IoU", "Pixel Acc"]
    assert masks[1] == ["U-Net", "published", "0.8614±0.1908", "0.7910±0.2105", "0.9907±0.0080"]
    assert masks[3:] == [
        ["JointU-Net", "published", "0.8231", "0.7443", "0.9900"],
        ["", "folds by patient", "0.500±0.125", "0.400", NOTHING],
        ["", "folds by image", "0.500±0.125", "0.400", NOTHING],
    ]
    assert classes[-1][:3] == ["", "folds by image", "0.750"]
    text = tables_text(reproduction, outcomes, "Dataset001_X", (0,), 0.02)
    assert text.count("ours: Dataset001_X, fold 0, 0.02 of the paper's epochs") == 2
    assert "the paper's number of epochs" in tables_text(reproduction, {}, "Dataset001_X", (0, 1), 1.0)


def test_tables_of_external_data_show_the_external_part() -> None:
    outcomes = {"BrainTumNet": {"patient": OUTCOME, "external": OUTCOME}}
    masks, classes = (paper_table(table, outcomes)[-2:] for table in REPRODUCTIONS["000"].tables[2:])
    assert masks == [
        ["BrainTumNet", "published", "92.1", "11.47", "0.91"],
        ["", "external part", "50.00±12.50", NOTHING, "0.400"],
    ]
    assert classes[1] == ["", "external part", "0.600", NOTHING, "0.750", NOTHING]


def test_figures_in_the_units_of_the_paper() -> None:
    row = paper_table(REPRODUCTIONS["000"].tables[1], {"BrainTumNet": {"patient": OUTCOME}})
    ours = dict(zip(row[0], row[[line[0] for line in row].index("BrainTumNet") + 1], strict=True))
    assert ours["Glioma ACC"] == f"{1 - 2 / 12:.3f}"  # one missed, one wrongly called glioma, of twelve
    assert ours["Metastatic ACC"] == NOTHING
    assert mask("Dice", "glioma")(SUMMARY, "tumour") == {"value": None}
    assert mask("Dice", "no such class")(SUMMARY, "tumour") is None
    assert of_classes("per_class", "glioma", "f1")(SUMMARY, "tumour") == {"value": 0.8}


# ---------------------------------------------------------------------- the command, with stand-ins for what it runs


@pytest.fixture
def commands(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that were run; they leave the files by which they are known to be done."""
    raw = nnunet_folders.raw / "Dataset004_Heads"
    (raw / "labelsTs").mkdir(parents=True)
    (raw / "imagesTs").mkdir()
    (raw / "labelsTs" / "a.png").touch()
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    run: list[tuple[str, ...]] = []

    def stand_in(stage: Stage, *command: str, **variables: str) -> None:
        run.append(command)
        if command[0] == "nnUNetv2_plan_and_preprocess":
            folder = nnunet_folders.preprocessed / "Dataset004_Heads"
            (folder / "data_2d").mkdir(parents=True)
            plan = {"data_identifier": "data_2d", "patch_size": [256, 256], "batch_size": 50}
            (folder / "BrainTumBr35HPlans.json").write_text(json.dumps({"configurations": {"2d": plan}}))
        elif command[0] == "nnUNetv2_train":
            assert variables["braintum_num_epochs"] == "2"
            split = variables["braintum_split_by"]
            split = "" if split == "patient" else f"split_by_{split}"
            model = f"{command[command.index('-tr') + 1]}__{command[command.index('-p') + 1]}__2d"
            folder = Path(variables["nnUNet_results"], split, "Dataset004_Heads", model, "fold_0", "validation")
            if os.environ.get("FAIL"):
                raise ValueError("no memory")
            folder.mkdir(parents=True)
            (folder / "summary.json").touch()
        else:
            Path(command[command.index("-o") + 1]).mkdir(exist_ok=True)

    found = api.Evaluation(summaries={"x": SUMMARY}, folders={}, tables=[])
    monkeypatch.setattr(Stage, "run", stand_in)
    monkeypatch.setattr(api, "evaluate_models", lambda *args, **options: found)
    monkeypatch.setattr(api, "evaluate", lambda *args, **options: found)
    return run


ARGUMENTS = ["004", "-d", "4", "--epochs-fraction", "0.02", "-device", "cpu"]


def test_from_planning_to_the_printed_table(commands: Any, capsys: Any, nnunet_folders: Any) -> None:
    raw = nnunet_folders.raw / "Dataset004_Heads"
    (raw / "labelsExternal").mkdir()
    (raw / "labelsExternal" / "b.png").touch()
    assert paper(ARGUMENTS) == 0
    assert [command[0] for command in commands] == [
        "nnUNetv2_plan_and_preprocess",
        *["nnUNetv2_train"] * 2,
        *["braintum_predict"] * 2,
    ]
    predicted = [Path(command[command.index("-i") + 1]) for command in commands[3:]]
    assert predicted == [raw / "imagesTs", raw / "imagesExternal"]
    assert len({command[command.index("-o") + 1] for command in commands[3:]}) == 2
    assert commands[0][commands[0].index("-pl") + 1] == "BrainTumPlannerBr35H"
    assert commands[0][commands[0].index("-d") + 1] == "4"  # nnU-Net's planning takes numbers only
    assert "--c" in commands[1]
    text = (nnunet_folders.results / "paper_004_0.02" / "tables.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    for expected in (
        "0.02 of the paper's epochs",
        "0.826",
        "official split",
        "folds by group of copies",
        "test part",
        "external part",
        "0.500±0.125",
    ):
        assert expected in text


def test_goes_on_where_it_stopped(commands: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FAIL", "1")
    assert paper(ARGUMENTS) == 3
    assert "U-Net: stage train failed: no memory" in capsys.readouterr().err
    monkeypatch.delenv("FAIL")
    commands.clear()
    assert paper(ARGUMENTS) == 0
    assert [command[0] for command in commands] == [*["nnUNetv2_train"] * 2, "braintum_predict"]
    commands.clear()
    assert paper([*ARGUMENTS, "--splits", "patient", "image"]) == 0
    # the test part by the model of the first split
    assert [command[0] for command in commands] == [*["nnUNetv2_train"] * 2, "braintum_predict"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs-fraction", "0"], "above 0 and up to 1"),
        (["--systems", "V-Net"], "paper 004 has no V-Net; it has U-Net"),
        (["-d", "5"], "5"),
    ],
)
def test_wrong_arguments(commands: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paper([*ARGUMENTS, *arguments])
    assert commands == []
