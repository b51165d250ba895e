"""The page of trainers, from the classes."""

from dataclasses import fields, is_dataclass
from typing import Any

from markup import plain, table, title

from braintum.trainers.descriptions import TrainerDescription, describe_trainers
from braintum.trainers.recipes.papers import PAPERS
from braintum.trainers.recipes.recipe import RECIPES

_PREFIX = "nnUNetTrainer"
_REGISTERED = "braintum.trainers.registered"


def trainer_page() -> str:
    """The page."""
    trainers = describe_trainers()
    overview = [
        [
            f":ref:`{each.name.removeprefix(_PREFIX)} <{each.name}>`",
            each.task,
            each.dimensions,
            _papers(each),
            plain(each.summary),
        ]
        for each in trainers
    ]
    return (
        title("Trainers")
        + "What ``nnUNetv2_train -tr`` takes; ``braintum_trainers`` prints the same table. Epochs, iterations and more "
        + "are changed by :doc:`environment variables <environment>`. Patch size, batch size and normalisation are the "
        + "plans'; the clipping of the gradient's norm at 12 is nnU-Net's. Each trainer follows another recipe under "
        + "its name with ``_<recipe>`` behind it: "
        + ", ".join(f"``{name}``" for name in RECIPES)
        + ".\n\n"
        + table([f"``-tr {_PREFIX}…``", "task", "configurations", "papers", "what it is"], overview, "24 14 12 14 36")
        + "".join(_section(each) for each in trainers)
        + title("Papers", "-")
        + "Docstrings and plans call the papers by these numbers.\n\n"
        + "".join(f".. _paper-{paper.number}:\n\n**{paper.number}** {plain(paper.citation)}\n\n" for paper in PAPERS)
    )


def _section(trainer: TrainerDescription) -> str:
    rows = [["network", ", ".join(f":class:`~{path}`" for path in trainer.networks)], ["papers", _papers(trainer)]]
    rows += [["loss", plain(trainer.loss)]]
    rows += [[f"``{field.name}``", _value(getattr(trainer.recipe, field.name))] for field in fields(trainer.recipe)]
    return (
        f".. _{trainer.name}:\n\n"
        + title(trainer.name, "-")
        + f".. autoclass:: {_REGISTERED}.{trainer.name}\n   :no-index:\n   :show-inheritance:\n\n"
        + table(["", "default"], rows, "25 75")
    )


def _papers(trainer: TrainerDescription) -> str:
    return ", ".join(f":ref:`{paper.short} <paper-{paper.number}>`" for paper in trainer.papers) or "ours"


def _value(value: Any) -> str:
    """A value of a recipe, in the words of the code."""
    if value is None:
        return "nnU-Net's or none"
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{field.name}={_text(getattr(value, field.name))}" for field in fields(value))
        return f"``{type(value).__name__}({inner})``"
    return f"``{_text(value)}``"


def _text(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)
