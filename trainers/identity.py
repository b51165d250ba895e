"""What was trained, and how."""

from dataclasses import asdict
from typing import Any

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.commands.provenance import content_hash


def training_identity(trainer: Any) -> dict[str, Any]:
    """Model, configuration and settings of a :class:`~braintum.trainers.segmentation.SegmentationTrainer`, for JSON."""
    plans = trainer.plans_manager.plans
    return {
        "model": {
            "trainer": type(trainer).__name__,
            "plans": plans["plans_name"],
            "plans_hash": content_hash({k: v for k, v in plans.items() if k != "continue_training"}),
            "weights": {str(trainer.fold): weights_fingerprint(trainer.bare_network.state_dict())},
        },
        "configuration": trainer.configuration_name,
        "num_epochs": trainer.num_epochs,
        "settings": {name: value for name, value in asdict(trainer.settings).items() if value is not None},
    }
