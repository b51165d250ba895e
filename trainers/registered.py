"""The trainers that nnU-Net finds by name: those that are listed, and pairs of a system and a recipe."""

from functools import cache

from braintum.trainers.pretrained import PREFIX as PRETRAINED_PREFIX
from braintum.trainers.pretrained import pretrained_trainer
from braintum.trainers.recipes.recipe import RECIPES
from braintum.trainers.segmentation import SegmentationTrainer
from braintum.trainers.systems import CLASSES, SYSTEMS

PREFIX = "nnUNetTrainer"
_CLASSES = {trainer.__name__: trainer for trainer in CLASSES}


@cache
def trainer_named(name: str) -> type[SegmentationTrainer]:
    """The class of a trainer; the same one whenever it is asked for.

    Args:
        name: ``nnUNetTrainer<System>``, ``nnUNetTrainerPretrained_<backbone of timm>``, or one of these with
            ``_<Recipe>`` behind it.

    Raises:
        AttributeError: no trainer, or one that its own recipe belongs to.
    """
    trainer, _, recipe = name.rpartition("_")
    if recipe in RECIPES and trainer:
        base = trainer_named(trainer)
        if not base.takes_recipes:
            raise AttributeError(f"{trainer} is trained by its own recipe only")
        summary = f"{trainer} by the recipe {recipe}, see :data:`braintum.trainers.recipes.recipe.RECIPES`."
        return _composed(name, summary, base, {"recipe": base.adapted(RECIPES[recipe]), "paper_parameters": None})
    if name in _CLASSES:
        return _CLASSES[name]
    if name.startswith(PRETRAINED_PREFIX):
        return pretrained_trainer(name.removeprefix(PRETRAINED_PREFIX))
    system = SYSTEMS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if system is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    attributes = {
        "recipe": system.kind.adapted(system.recipe),
        "papers": system.papers,
        "paper_parameters": system.parameters,
        "dimensions": system.dimensions or system.kind.dimensions,
        "build_network_architecture": staticmethod(system.network),
    }
    return _composed(name, system.summary, system.kind, attributes)


def _composed(
    name: str, summary: str, base: type[SegmentationTrainer], attributes: dict[str, object]
) -> type[SegmentationTrainer]:
    # of this module, where it is found again by name, as processes of a training do that get it pickled
    return type(name, (base,), {**attributes, "__doc__": summary, "__module__": __name__})


def pairs() -> list[str]:
    """Names of all pairs of a listed trainer with a recipe that is not its own."""
    return [
        f"{name}_{recipe}"
        for name in __all__
        for recipe in RECIPES
        if (trainer := trainer_named(name)).takes_recipes and trainer.adapted(RECIPES[recipe]) != trainer.recipe
    ]


__all__ = sorted([*_CLASSES, *(PREFIX + name for name in SYSTEMS)])
globals().update({name: trainer_named(name) for name in __all__})


def __getattr__(name: str) -> type[SegmentationTrainer]:
    """Trainers that are not listed, see :func:`trainer_named`."""
    return trainer_named(name)
