"""ResSE-LKA-UNet of paper 002, and the same with our classification head."""

from braintum.architectures.networks.resse_lka_unet import ResSELKAUNet
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import multi_task_network, segmentation_network
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import RESSE_LKA
from braintum.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerResSELKA(SegmentationTrainer):
    """ResSE-LKA-UNet, segmentation alone; needs no classes."""

    recipe = RESSE_LKA
    papers = (papers.RESSE_LKA,)
    build_network_architecture = staticmethod(segmentation_network(lambda plan: ResSELKAUNet))


class nnUNetTrainerResSELKAMultiTask(nnUNetTrainerMultiTask):
    """ResSE-LKA-UNet with the classification head."""

    recipe = RESSE_LKA
    papers = (papers.RESSE_LKA,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: ResSELKAUNet))
