"""Standalone classifiers of papers 001 and 003, and those that the papers compare with.

They segment nothing, so only ``braintum_predict`` makes sense for them, also as ``--class-model`` beside a segmentation
model. For nnU-Net their mask is background.
"""

import os
from functools import partial
from importlib import import_module
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from braintum.architectures.imagenet_weights import VARIABLE
from braintum.architectures.networks.classifiers import UNetEncoderClassifier
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import ChooseNetwork, multi_task_network
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import FINE_TUNED_CLASSIFIER, FT_CNN, UNET_CLASSIFIER


def _from_torchvision(name: str) -> ChooseNetwork:
    """A network of :mod:`braintum.architectures.networks.torchvision_classifiers`.

    It is imported by those who train it alone:
    torchvision fails to import beside a torch that was built for other hardware.
    """
    return partial(_import_class, "braintum.architectures.networks.torchvision_classifiers", name)


def _import_class(module: str, name: str, plan: ConfigurationManager) -> type[nn.Module]:
    return getattr(import_module(module), name)


class ClassifierTrainer(nnUNetTrainerMultiTask):
    """Base of the classifiers' trainers: trains the classification alone."""

    balances_tasks = False

    def on_train_start(self) -> None:
        """As ever, after a word on what the model is good for."""
        self.print_to_log_file(
            f"{type(self).__name__} trains a classifier: Dice and masks mean nothing. Predict with braintum_predict, "
            "and with checkpoint_best_joint.pth where you want the best checkpoint",
            also_print_to_console=True,
        )
        super().on_train_start()


class PretrainedClassifierTrainer(ClassifierTrainer):
    """Base of those that start from ImageNet weights: of the file in the environment variable, or of torch's cache.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds other weights, or none were found.
    """

    dimensions = (2,)

    def initialize(self) -> None:
        """As ever, then load the ImageNet weights."""
        super().initialize()
        file = self.bare_network.load_pretrained(os.environ.get(VARIABLE))
        self.print_to_log_file(f"weights to start from: {'random' if file is None else file}")

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As ever; the checkpoint holds all weights, so that it asks for no others."""
        if not self.was_initialized:
            super().initialize()
        super().load_checkpoint(filename_or_checkpoint)


class nnUNetTrainerClassifierUNet(ClassifierTrainer):
    """The U-Net's encoder with global pooling and dense layers, paper 001."""

    recipe = UNET_CLASSIFIER
    papers = (papers.JOINT_UNET,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: UNetEncoderClassifier))


class nnUNetTrainerClassifierFTCNN(PretrainedClassifierTrainer):
    """FT-CNN of paper 003: dense layers on VGG19's frozen features."""

    recipe = FT_CNN
    papers = (papers.FT_CNN_AND_RUNET,)
    build_network_architecture = staticmethod(multi_task_network(_from_torchvision("FTCNN")))


class nnUNetTrainerClassifierResNet50(PretrainedClassifierTrainer):
    """ResNet-50, fine-tuned; paper 000 compares with it."""

    recipe = FINE_TUNED_CLASSIFIER
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(_from_torchvision("ResNet50Classifier")))


class nnUNetTrainerClassifierDenseNet121(PretrainedClassifierTrainer):
    """DenseNet-121, fine-tuned; paper 000 compares with it."""

    recipe = FINE_TUNED_CLASSIFIER
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(_from_torchvision("DenseNet121Classifier")))


class nnUNetTrainerClassifierGoogLeNet(PretrainedClassifierTrainer):
    """GoogLeNet, fine-tuned; paper 000 compares with it."""

    recipe = FINE_TUNED_CLASSIFIER
    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(multi_task_network(_from_torchvision("GoogLeNetClassifier")))
