"""BrainTumNet of paper 000 in two stages, which the paper compares its training with."""

from dataclasses import replace

from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import multi_task_network
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import BRAINTUMNET
from braintum.trainers.recipes.schedule import CosineDecay


class nnUNetTrainerBrainTumNetTwoStage(nnUNetTrainerMultiTask):
    """The parts of BrainTumNet one after the other: first the segmentation, then, with it frozen, the classification.

    Each stage takes half of the epochs, as many as the paper trains one network for, with its own cosine and with the
    optimiser as new.

    Raises:
        NotImplementedError: with DDP.
    """

    recipe = replace(BRAINTUMNET, decay=CosineDecay(cycles=2), num_epochs=2 * BRAINTUMNET.num_epochs)
    papers = (papers.BRAINTUMNET,)
    balances_tasks = False
    takes_recipes = False
    build_network_architecture = staticmethod(multi_task_network(lambda plan: BrainTumNet))

    def initialize(self) -> None:
        """As stock.

        Raises:
            NotImplementedError: with DDP, which wants the same parameters to learn all the time.
        """
        if self.is_ddp:
            raise NotImplementedError(f"{type(self).__name__} trains on one GPU; train without -num_gpus")
        super().initialize()

    @property
    def first_epoch_of_classification(self) -> int:
        """When the second stage begins."""
        return (self.num_epochs + 1) // 2

    @property
    def task_weights(self) -> tuple[float, float]:
        """One task at a time."""
        segmentation, classification = super().task_weights
        if self.current_epoch < self.first_epoch_of_classification:
            return segmentation, 0.0
        return 0.0, classification

    def on_train_epoch_start(self) -> None:
        """As stock; freezes the segmentation when, or after a resume if, the second stage has begun."""
        if self.current_epoch >= self.first_epoch_of_classification and not self.bare_network.segmentation_is_frozen:
            self.print_to_log_file("Second stage: encoder and decoder are frozen, the classification is trained")
            self.bare_network.freeze_segmentation()
            if self.current_epoch == self.first_epoch_of_classification:
                self.optimizer.state.clear()  # moments of the first stage, all of them zero for the head
        super().on_train_epoch_start()
