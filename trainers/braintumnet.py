"""BrainTumNet of paper 000: end to end, in two stages for the paper's comparison, and its ablations."""

from dataclasses import replace
from functools import partial

from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import import_class, multi_task_network
from braintum.trainers.pretrained import DEFAULT_BACKBONE, PretrainedBackboneTrainer
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import BRAINTUMNET, SHORT
from braintum.trainers.recipes.schedule import CosineDecay


class nnUNetTrainerBrainTumNet(nnUNetTrainerMultiTask):
    """BrainTumNet, both tasks at once."""

    recipe = BRAINTUMNET
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: BrainTumNet))


class nnUNetTrainerBrainTumNetShort(nnUNetTrainerBrainTumNet):
    """BrainTumNet by the recipe for short trainings instead of the paper's."""

    recipe = SHORT


class nnUNetTrainerBrainTumNetPretrained(PretrainedBackboneTrainer):
    """BrainTumNet on an ImageNet backbone, the paper's "pre-trained encoder", by the recipe for short trainings."""

    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(
        multi_task_network(
            partial(import_class, "braintum.architectures.networks.timm_braintumnet", "TimmBrainTumNet"),
            backbone=DEFAULT_BACKBONE,
        )
    )


class nnUNetTrainerBrainTumNetNoTransformer(nnUNetTrainerMultiTask):
    """Ablation: neither BT blocks nor transformers in T-InceptionNet."""

    recipe = BRAINTUMNET
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: BrainTumNet, use_transformer=False))


class nnUNetTrainerBrainTumNetNoInception(nnUNetTrainerMultiTask):
    """Ablation: the classification head pools gated features as they are."""

    recipe = BRAINTUMNET
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: BrainTumNet, use_inception=False))


class nnUNetTrainerBrainTumNetTwoStage(nnUNetTrainerBrainTumNet):
    """The parts of BrainTumNet one after the other: first the segmentation, then, with it frozen, the classification.

    Each stage takes half of the epochs, as many as the paper trains one network for, with its own cosine and with the
    optimiser as new.

    Raises:
        NotImplementedError: with DDP.
    """

    recipe = replace(BRAINTUMNET, decay=CosineDecay(cycles=2), num_epochs=2 * BRAINTUMNET.num_epochs)
    balances_tasks = False

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
