"""What our trainers are, read from the classes themselves."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from braintum.trainers import registered
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.recipes.papers import Paper
from braintum.trainers.recipes.recipe import RECIPES, Recipe
from braintum.trainers.segmentation import SegmentationTrainer

_STOCK_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")  # what nnU-Net's and our plans ask for


@dataclass(frozen=True)
class TrainerDescription:
    """One trainer that nnU-Net finds by name.

    Attributes:
        name: for ``-tr``.
        summary: first line of its docstring.
        networks: dotted paths of the classes that it trains; more than one where the plans decide.
        task: ``masks``, ``classes``, or ``masks + classes``.
        dimensions: ``2-D``, or ``2-D, 3-D``.
        papers: that describe the network, or the idea added to nnU-Net's.
        recipe: its defaults.
    """

    name: str
    summary: str
    networks: tuple[str, ...]
    task: str
    dimensions: str
    papers: tuple[Paper, ...]
    recipe: Recipe

    @property
    def loss(self) -> str:
        """The losses and their weights, in short."""
        terms = []
        if self.recipe.segmentation_weight:
            masks = self.recipe.segmentation_loss
            terms.append("nnU-Net's" if masks is None else _words(masks.build.__name__))
        if self.task != "masks":
            weight = "" if self.recipe.class_weight == 1 else f"{self.recipe.class_weight:g} "
            terms.append(f"{weight}class cross entropy")
        return " + ".join(terms)

    def row(self) -> dict[str, Any]:
        """The most important of it as text and numbers, by column."""
        return {
            "trainer": self.name,
            "network": ", ".join(path.rpartition(".")[2] for path in self.networks),
            "task": self.task,
            "configurations": self.dimensions,
            "epochs": self.recipe.num_epochs,
            "epoch": self.recipe.epoch,
            "optimiser": self.recipe.optimizer.__name__,
            "learning rate": self.recipe.body.lr,
            "loss": self.loss,
            "paper": ", ".join(paper.short for paper in self.papers),
            "summary": self.summary,
        }


def describe_trainers() -> list[TrainerDescription]:
    """All trainers of :mod:`braintum.trainers.registered`, in its order."""
    return [_describe(getattr(registered, name)) for name in registered.__all__]


def describe_recipes() -> list[dict[str, Any]]:
    """A row of each recipe that goes with any trainer."""
    return [
        {
            "recipe": name,
            "epochs": recipe.num_epochs,
            "epoch": "pass over the images" if recipe.epoch == "pass" else "250 iterations",
            "optimiser": recipe.optimizer.__name__,
            "learning rate": recipe.body.lr,
            "planner": "" if recipe.plans is None else recipe.plans.planner,
        }
        for name, recipe in RECIPES.items()
    ]


def _describe(trainer: type[SegmentationTrainer]) -> TrainerDescription:
    task = "masks"
    if issubclass(trainer, nnUNetTrainerMultiTask):
        task = "masks + classes" if trainer.recipe.segmentation_weight else "classes"
    return TrainerDescription(
        name=trainer.__name__,
        summary=(trainer.__doc__ or "").partition("\n")[0],
        networks=_networks(trainer.build_network_architecture),
        task=task,
        dimensions=", ".join(f"{number}-D" for number in trainer.dimensions),
        papers=trainer.papers,
        recipe=trainer.recipe,
    )


def _networks(build: partial) -> tuple[str, ...]:
    """Dotted paths of what a trainer may build, see :data:`braintum.trainers.networks.BuildNetwork`."""
    choose = build.args[0]
    if isinstance(choose, partial):  # of a network that is imported late, by its module and name
        return (".".join(choose.args),)
    chosen = [choose(SimpleNamespace(network_arch_class_name=name)) for name in _STOCK_NETWORKS]
    return tuple(dict.fromkeys(f"{network.__module__}.{network.__qualname__}" for network in chosen))


def _words(function_name: str) -> str:
    """``bce_dice_loss`` as ``bce dice``."""
    return function_name.removesuffix("_loss").replace("_", " ")
