"""The trainers as data: a network, the kind of training that it takes, and the recipe that goes with it.

``nnUNetTrainer<System>`` trains a system by its own recipe and ``nnUNetTrainer<System>_<Recipe>`` by another one, so
that a baseline can be trained as what it is compared with: ``nnUNetTrainerUNet_ResSELKA`` is the U-Net by the recipe of
ResSE-LKA-UNet. The name says what a model folder holds. Trainers that do more than that are classes, and take the
recipes all the same, by the same names.
"""

from dataclasses import dataclass
from functools import partial

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

from braintum.architectures.networks.attended_multi_task_unet import (
    large_kernel_network_class,
    masked_attention_network_class,
)
from braintum.architectures.networks.attention_unet import AttentionUNet
from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.architectures.networks.classifiers import UNetEncoderClassifier
from braintum.architectures.networks.joint_unet import JointUNet, UNet
from braintum.architectures.networks.multi_task_unet import multi_task_network_class, stock_counterpart
from braintum.architectures.networks.residual_unet import RUNet
from braintum.architectures.networks.resse_lka_unet import ResSELKAUNet
from braintum.trainers.baselines import BASELINES, COMPARED
from braintum.trainers.braintumnet import nnUNetTrainerBrainTumNetTwoStage
from braintum.trainers.classifiers import (
    ClassifierTrainer,
    FrozenFeaturesTrainer,
    PretrainedClassifierTrainer,
)
from braintum.trainers.masked_images import nnUNetTrainerMaskedImages
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import (
    BuildNetwork,
    ChooseNetwork,
    import_class,
    multi_task_network,
    segmentation_network,
)
from braintum.trainers.pretrained import (
    DEFAULT_BACKBONE,
    PretrainedBackboneTrainer,
    nnUNetTrainerPretrained,
)
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.papers import Paper
from braintum.trainers.recipes.recipe import (
    BR35H_UNET,
    BRAINTUMNET,
    FT_CNN,
    JOINT_UNET,
    MULTI_TASK,
    NNUNET,
    PRETRAINED,
    RESIDUAL_UNET,
    RESSE_LKA,
    SHORT,
    Recipe,
)
from braintum.trainers.segmentation import SegmentationTrainer


@dataclass(frozen=True)
class System:
    """A trainer by its parts.

    Attributes:
        summary: first line of its docstring.
        kind: of training: of masks, of masks and classes, or of classes.
        network: what it trains.
        recipe: by which it is trained unless its name asks for another.
        papers: that describe the network, or the idea added to nnU-Net's.
        parameters: of the network on its paper's plans, for one channel and three classes.
        dimensions: of the images that the network takes; None for those of its kind.
    """

    summary: str
    kind: type[SegmentationTrainer]
    network: BuildNetwork
    recipe: Recipe
    papers: tuple[Paper, ...] = ()
    parameters: int | None = None
    dimensions: tuple[int, ...] | None = None


def _late(module: str, name: str, part: str = "networks") -> ChooseNetwork:
    """A network of another library, imported where it is trained."""
    return partial(import_class, f"braintum.architectures.{part}.{module}", name)


def _braintumnet(summary: str, parameters: int | None, recipe: Recipe = BRAINTUMNET, **options: bool) -> System:
    network = multi_task_network(lambda plan: BrainTumNet, **options)
    return System(summary, nnUNetTrainerMultiTask, network, recipe, (papers.BRAINTUMNET,), parameters)


def _unet(summary: str, network_class: type, recipe: Recipe, described_in: Paper, parameters: int) -> System:
    summary = f"{summary}, segmentation alone; needs no classes."
    network = segmentation_network(lambda plan: network_class)
    return System(summary, SegmentationTrainer, network, recipe, (described_in,), parameters)


def _torchvision(summary: str, name: str) -> System:
    network = multi_task_network(_late("torchvision_classifiers", name))
    summary = f"{summary}, fine-tuned; paper 000 compares with it. Settled: trained as BrainTumNet."
    return System(summary, PretrainedClassifierTrainer, network, BRAINTUMNET, (papers.BRAINTUMNET,))


def _of_others(name: str) -> dict[str, System]:
    """A network to compare with, for masks alone and with the classification head."""
    module, what, dimensions = BASELINES[name]
    network = _late(module, name, "baselines")
    described_in = (papers.BRAINTUMNET,) if name in COMPARED else ()
    masks, both = f"{what}, segmentation alone; needs no classes.", f"{what}, with the classification head."
    return {
        name: System(
            masks, SegmentationTrainer, segmentation_network(network), BRAINTUMNET, described_in, dimensions=dimensions
        ),
        f"{name}MultiTask": System(
            both, nnUNetTrainerMultiTask, multi_task_network(network), BRAINTUMNET, described_in, dimensions=dimensions
        ),
    }


SYSTEMS = {
    "AttentionUNet": _unet(
        "U-Net with attention gates of paper 001", AttentionUNet, JOINT_UNET, papers.JOINT_UNET, 32_089_676
    ),
    "BrainTumNet": _braintumnet("BrainTumNet, both tasks at once.", 42_509_329),
    "BrainTumNetAllLevels": _braintumnet(
        "BrainTumNet with BT blocks at every level of the decoder.", 42_871_585, bt_blocks_at_all_levels=True
    ),
    "BrainTumNetModalityMasks": _braintumnet(
        "BrainTumNet with a branch of the attention masks for each channel, what the paper names as future work.",
        42_510_513,
        modality_masks=True,
    ),
    "BrainTumNetNoInception": _braintumnet(
        "Ablation: the classification head pools gated features as they are.", 37_127_697, use_inception=False
    ),
    "BrainTumNetNoTransformer": _braintumnet(
        "Ablation: neither BT blocks nor transformers in T-InceptionNet.", 33_118_913, use_transformer=False
    ),
    "BrainTumNetPretrained": System(
        'BrainTumNet on an ImageNet backbone, the paper\'s "pre-trained encoder", by the recipe for short trainings.',
        PretrainedBackboneTrainer,
        multi_task_network(_late("timm_braintumnet", "TimmBrainTumNet"), backbone=DEFAULT_BACKBONE),
        PRETRAINED,
        (papers.BRAINTUMNET,),
    ),
    "BrainTumNetShort": _braintumnet(
        "BrainTumNet by the recipe for short trainings instead of the paper's.", None, SHORT
    ),
    "Br35HUNet": _unet("U-Net of paper 004", UNet, BR35H_UNET, papers.BR35H_UNET, 31_044_232),
    "ClassifierDenseNet121": _torchvision("DenseNet-121", "DenseNet121Classifier"),
    "ClassifierFTCNN": System(
        "FT-CNN of paper 003: dense layers on VGG19's frozen features.",
        FrozenFeaturesTrainer,
        multi_task_network(_late("torchvision_classifiers", "FTCNN")),
        FT_CNN,
        (papers.FT_CNN_AND_RUNET,),
        37_329_347,
    ),
    "ClassifierGoogLeNet": _torchvision("GoogLeNet", "GoogLeNetClassifier"),
    "ClassifierResNet50": _torchvision("ResNet-50", "ResNet50Classifier"),
    "ClassifierUNet": System(
        "The U-Net's encoder with global pooling and dense layers, paper 001.",
        ClassifierTrainer,
        multi_task_network(lambda plan: UNetEncoderClassifier),
        JOINT_UNET,
        (papers.JOINT_UNET,),
        19_113_155,
    ),
    "JointUNet": System(
        "U-Net of paper 001 with a classification head at the bottleneck.",
        nnUNetTrainerMultiTask,
        multi_task_network(lambda plan: JointUNet),
        JOINT_UNET,
        (papers.JOINT_UNET,),
        31_307_403,
    ),
    "MultiTaskLKA": System(
        "nnU-Net's network, whose deepest encoder stages get large kernel attention, paper 002's.",
        nnUNetTrainerMultiTask,
        multi_task_network(lambda plan: large_kernel_network_class(plan.network_arch_class_name)),
        MULTI_TASK,
        (papers.RESSE_LKA,),
    ),
    "MultiTaskMaskedAttention": System(
        "nnU-Net's network, whose deepest encoder stages get a BT block with adaptive masked attention, paper 000's.",
        nnUNetTrainerMultiTask,
        multi_task_network(lambda plan: masked_attention_network_class(plan.network_arch_class_name)),
        MULTI_TASK,
        (papers.BRAINTUMNET,),
    ),
    "MultiTaskShort": System(
        "The plans' network with the classification head by the recipe for short trainings, also on a CPU.",
        nnUNetTrainerMultiTask,
        multi_task_network(lambda plan: multi_task_network_class(plan.network_arch_class_name)),
        SHORT,
    ),
    "PlansNetwork": System(
        "The plans' own network by nnU-Net's own recipe, segmentation alone; what other recipes are compared on.",
        SegmentationTrainer,
        segmentation_network(
            lambda plan: stock_counterpart(plan.network_arch_class_name, PlainConvUNet, ResidualEncoderUNet)
        ),
        NNUNET,
    ),
    "ResSELKA": _unet("ResSE-LKA-UNet of paper 002", ResSELKAUNet, RESSE_LKA, papers.RESSE_LKA, 11_300_968),
    "ResSELKAMultiTask": System(
        "ResSE-LKA-UNet with the classification head.",
        nnUNetTrainerMultiTask,
        multi_task_network(lambda plan: ResSELKAUNet),
        RESSE_LKA,
        (papers.RESSE_LKA,),
    ),
    "ResidualUNet": _unet("RUNet of paper 003", RUNet, RESIDUAL_UNET, papers.FT_CNN_AND_RUNET, 2_075_992),
    "UNet": _unet("U-Net of paper 001", UNet, JOINT_UNET, papers.JOINT_UNET, 31_044_232),
}
"""By name."""
for _name in BASELINES:
    SYSTEMS |= _of_others(_name)

CLASSES = (
    nnUNetTrainerBrainTumNetTwoStage,
    nnUNetTrainerMaskedImages,
    nnUNetTrainerMultiTask,
    nnUNetTrainerPretrained,
)
"""Trainers that do more than their parts say."""
