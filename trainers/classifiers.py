"""Standalone classifiers of papers 001 and 003, and those that the papers compare with.

They segment nothing, so only ``braintum_predict`` makes sense for them, also as ``--class-model`` beside a segmentation
model. For nnU-Net their mask is background.
"""

from functools import partial

from braintum.architectures.networks.classifiers import UNetEncoderClassifier
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import ChooseNetwork, import_class, multi_task_network
from braintum.trainers.pretrained import StartsFromPretrained
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import FINE_TUNED_CLASSIFIER, FT_CNN, UNET_CLASSIFIER


def _from_torchvision(name: str) -> ChooseNetwork:
    """A network of :mod:`braintum.architectures.networks.torchvision_classifiers`."""
    return partial(import_class, "braintum.architectures.networks.torchvision_classifiers", name)


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


class PretrainedClassifierTrainer(StartsFromPretrained, ClassifierTrainer):
    """Base of those that start from ImageNet weights."""

    dimensions = (2,)

    def pretrained_network(self) -> str:
        """The network's name in the catalogue of weights."""
        return self.bare_network.pretrained_network


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
