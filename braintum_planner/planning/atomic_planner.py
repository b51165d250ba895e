"""nnU-Net's residual-encoder planner, whose files are there completely or not at all."""

from typing import Any

from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)

from braintum.conversion.files.atomic import atomic_writes_of


class AtomicResEncUNetPlanner(ResEncUNetPlanner):
    """Base of our planners: plans, ``dataset.json`` and splits replace earlier ones in one step each.

    What nnU-Net leaves half-written when it is killed makes the next run fail: it reads its own earlier files.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with atomic_writes_of(default_experiment_planner):  # splits
            super().__init__(*args, **kwargs)

    def plan_experiment(self) -> Any:
        """As stock."""
        with atomic_writes_of(default_experiment_planner):
            return super().plan_experiment()
