"""nnU-Net v2 extension that segments brain tumours in MRI and classifies their type in one model.

The functions below do what the commands do, on the same folders and environment variables of nnU-Net's::

    import braintum as bt

    bt.convert("figshare", "downloads/figshare", 42)       # nnUNet_raw/Dataset042_Figshare
    plans = bt.plan(42, configurations=["2d"])             # nnUNet_preprocessed/…/BrainTumPlans.json
    fold = bt.train(42, "2d", 0)                           # nnUNet_results/…/fold_0
    predictor = bt.load_predictor(fold.parent)             # or give the folder itself to what follows
    found = bt.predict(array, predictor, spacing=(0.5, 0.5))
    bt.predict_folder("images", "predictions", predictor)
    bt.evaluate("predictions", "labels").summary["dice"]
    bt.explain("images", "explanations", predictor)

What goes wrong is a :class:`BraintumError`. nnU-Net plans and trains in worker processes, so a script that calls
:func:`plan` or :func:`train` needs Python's usual ``if __name__ == "__main__":`` around it.

Nothing is imported before it is used. Everything else in the package can be imported, but may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

from braintum.commands.version import __version__

if TYPE_CHECKING:
    from braintum.commands.errors import (
        BraintumError,
        BraintumWarning,
        FileError,
        InputError,
        MissingFileError,
        RunError,
        UnsupportedError,
    )
    from braintum.conversion.api import convert
    from braintum.conversion.building.raw_dataset import ConversionResult
    from braintum.evaluation.api import Evaluation, evaluate, evaluate_models
    from braintum.inference.api import explain, load_model, load_predictor, predict, predict_folder, preprocess
    from braintum.inference.explain_folder import ExplainedFolder
    from braintum.inference.predict_case import Prediction
    from braintum.inference.predict_folder import PredictedFolder
    from braintum.planner.api import plan
    from braintum.trainers.api import train
    from braintum.trainers.recipes.settings import TrainingSettings

__all__ = [
    "BraintumError",
    "BraintumWarning",
    "ConversionResult",
    "Evaluation",
    "ExplainedFolder",
    "FileError",
    "InputError",
    "MissingFileError",
    "PredictedFolder",
    "Prediction",
    "RunError",
    "TrainingSettings",
    "UnsupportedError",
    "__version__",
    "convert",
    "evaluate",
    "evaluate_models",
    "explain",
    "load_model",
    "load_predictor",
    "plan",
    "predict",
    "predict_folder",
    "preprocess",
    "train",
]

_NAMES_OF_MODULES = {
    "commands.errors": (
        *("BraintumError", "BraintumWarning", "FileError", "InputError", "MissingFileError", "RunError"),
        "UnsupportedError",
    ),
    "conversion.api": ("convert",),
    "conversion.building.raw_dataset": ("ConversionResult",),
    "evaluation.api": ("Evaluation", "evaluate", "evaluate_models"),
    "inference.api": ("explain", "load_model", "load_predictor", "predict", "predict_folder", "preprocess"),
    "inference.explain_folder": ("ExplainedFolder",),
    "inference.predict_case": ("Prediction",),
    "inference.predict_folder": ("PredictedFolder",),
    "planner.api": ("plan",),
    "trainers.api": ("train",),
    "trainers.recipes.settings": ("TrainingSettings",),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers take the imports above, and would take any name if they saw this

    def __getattr__(name: str) -> Any:
        """Import what is asked for the first time."""
        if name not in _MODULE_OF_NAME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
