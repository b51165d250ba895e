"""What a training will be: how long it takes, and whether it is what the paper describes."""

import time
from collections.abc import Callable
from typing import Any

_AFTER_SECONDS = 60


class DurationEstimate:
    """Says once, after the first minute, how long the training will take; a hook for each step of the optimiser.

    Args:
        num_updates: that are to come.
        log: gets the line.
    """

    def __init__(self, num_updates: int, log: Callable[[str], None]) -> None:
        self.num_updates = num_updates
        self.log = log
        self._started = 0.0
        self._done = -1  # the first step allocates, compiles and waits for the workers
        self._said = False

    def __call__(self, *_: Any) -> None:
        """An update is done."""
        now = time.monotonic()
        self._done += 1
        if self._done == 0:
            self._started = now
        elif not self._said and now - self._started >= _AFTER_SECONDS:
            self._said = True
            seconds = (now - self._started) / self._done
            self.log(
                f"An update takes {seconds:.2f} s: about {seconds * self.num_updates / 3600:.1f} h for "
                f"{self.num_updates} of them; validation after each epoch comes on top"
            )


def difference_from_paper(trainer: Any) -> str | None:
    """How the system that is trained differs from that of the paper whose recipe it has; None where it is the same.

    A network takes its depth and widths from the plans, so on plans that were made for another network it is another
    one than the paper's, with another batch and other images. Papers know 2-D only.

    Args:
        trainer: a :class:`~braintum.trainers.segmentation.SegmentationTrainer` with its network.
    """
    paper, plans = trainer.recipe.plans, trainer.plans_manager
    patch_size, batch_size = trainer.configuration_manager.patch_size, trainer.configuration_manager.batch_size
    if paper is None or len(patch_size) != 2:
        return None
    planner = plans.plans.get("experiment_planner_used")
    if planner == paper.planner and batch_size == paper.batch_size:
        return None
    parameters = sum(parameter.numel() for parameter in trainer.bare_network.parameters())
    of_paper = "" if trainer.paper_parameters is None else f" (paper: {trainer.paper_parameters / 1e6:.1f} M)"
    if planner == paper.planner:
        remedy = "plan with a -gpu_memory_target that holds the batch"
    else:
        remedy = (
            f"the paper's plans come from: nnUNetv2_plan_and_preprocess -d {int(plans.dataset_name[7:10])} -c 2d -fpe "
            f"BrainTumFingerprintExtractor -pl {paper.planner}; then train with -p {paper.name}"
        )
    return (
        f"on the plans {plans.plans_name} {type(trainer).__name__} is not the paper's system: {parameters / 1e6:.1f} M "
        f"parameters{of_paper}, batches of {batch_size} (paper: {paper.batch_size}), patches of "
        f"{' x '.join(map(str, patch_size))} (paper: {paper.image_edge} x {paper.image_edge}). To get it, {remedy}"
    )
