"""``braintum_trainers``: lists what nnU-Net finds, in the words of the classes."""

import json

import pytest

from braintum.trainers import registered
from braintum.trainers.descriptions import TrainerDescription, describe_trainers
from braintum.trainers.recipes.papers import PAPERS
from braintum.trainers.trainers_cli import trainers

DESCRIPTIONS = describe_trainers()


def test_every_registered_trainer_is_described():
    assert [description.name for description in DESCRIPTIONS] == registered.__all__


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda description: description.name)
def test_words_and_figures_are_those_of_the_class(description: TrainerDescription):
    trainer = getattr(registered, description.name)
    row = description.row()
    assert description.summary
    assert trainer.__doc__.startswith(description.summary)
    assert (row["epochs"], row["learning rate"]) == (trainer.recipe.num_epochs, trainer.recipe.body.lr)
    assert description.task in ("masks", "classes", "masks + classes")
    assert ("classes" in description.task) == hasattr(trainer, "class_labels")
    assert ("class cross entropy" in description.loss) == hasattr(trainer, "class_labels")


def test_every_paper_has_a_trainer():
    assert {paper for description in DESCRIPTIONS for paper in description.papers} == set(PAPERS)


def test_a_network_of_the_plans_is_named_for_both_of_nnunet():
    (multi_task,) = [each for each in DESCRIPTIONS if each.name == "nnUNetTrainerMultiTask"]
    assert [path.rpartition(".")[2] for path in multi_task.networks] == [
        "MultiTaskPlainConvUNet",
        "MultiTaskResidualEncoderUNet",
    ]
    assert multi_task.papers == ()
    assert multi_task.loss == "nnU-Net's + class cross entropy"


def test_only_networks_of_other_libraries_are_2d():
    """Those refuse 3-D plans; the others take both, see the contract of all networks."""
    modules = ("torchvision_classifiers", "timm_unet", "timm_braintumnet", "transunet", "swin_unet", "smp_networks")
    of_others = {each.name for each in DESCRIPTIONS if each.networks[0].split(".")[-2] in modules}
    assert {each.name for each in DESCRIPTIONS if each.dimensions == "2-D"} == of_others
    assert len(of_others) == 16


def test_table(capsys: pytest.CaptureFixture[str]):
    assert trainers([]) == 0
    table = capsys.readouterr().out
    names = [line.split()[0] for line in table.splitlines() if line.startswith("nnUNetTrainer")]
    assert names == registered.__all__
    assert "MultiTask…" in table


def test_json(capsys: pytest.CaptureFixture[str]):
    assert trainers(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [description.row() for description in DESCRIPTIONS]
