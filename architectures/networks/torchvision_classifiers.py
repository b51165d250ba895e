"""Classifiers on ImageNet features of torchvision: FT-CNN of paper 003, and the networks that the papers compare with.

They are 2-D, and take the patch and the scales of deep supervision from the plan, nothing else.

Input: each channel of each patch is standardised to zero mean and unit variance, which is what ImageNet's normalisation
gives on average, so that one rule fits every normalisation of nnU-Net's. (Paper 003 does not say what VGG19 gets beyond
intensities in [0, 1].) Paper 003 repeats the grey image to three colours; here the first convolution's weights are
summed over the colours, which is the same. Several channels share the colours' weights equally, three (RGB) keep them.

Weights: a network is built with random weights, as a trained model needs no ImageNet file for prediction. A trainer
calls ``load_pretrained`` once, after nnU-Net has built and initialised the network.

Import this module where such a network is asked for, not before: torchvision fails to import beside a torch that was
built for other hardware.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn
from torchvision import models
from torchvision.models import vgg

from braintum.architectures.feature_maps import convolution_elements
from braintum.architectures.heads.dense_classification_head import DenseClassificationHead
from braintum.architectures.networks.classifiers import Classifier
from braintum.architectures.standardisation import imagenet_scale_and_offset, standardise
from braintum.architectures.weights.partial_loading import LoadReport, load_matching

# densenet121-a639ec97.pth was written when module names could hold dots: norm.1 is norm1 today
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

SMALLEST_EDGE = 32  # all of these networks halve the resolution five times


class TorchvisionClassifier(Classifier):
    """Base of the classifiers on torchvision's features.

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads.
        conv_op: ``nn.Conv2d``.
        strides: of the plan; they decide the scales of deep supervision.
        num_tumour_classes: number of tumour types.
        deep_supervision: return a list of segmentations.
        sigmoid_segmentation: True where the segmentation heads are regions, not exclusive labels.
        freeze_features: never train the features, and keep them in evaluation mode; by default as :attr:`frozen`.
        **topology: the rest of the plan's ``arch_kwargs``; these networks have their own topology.

    Attributes:
        pretrained_network: name of the network in :mod:`braintum.architectures.weights.catalogue`.
        frozen: whether the network's authors keep the features as they are.
        num_features: channels that the features end with.
        input_scale: factor on standardised intensities.
        input_offset: added to them.

    Raises:
        NotImplementedError: for a 3-D plan.
    """

    pretrained_network: ClassVar[str]
    frozen: ClassVar[bool] = False
    num_features: ClassVar[int]
    input_scale: ClassVar[float] = 1.0
    input_offset: ClassVar[float] = 0.0

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any,
        strides: Sequence[int | Sequence[int]],
        num_tumour_classes: int,
        deep_supervision: bool = False,
        sigmoid_segmentation: bool = False,
        freeze_features: bool | None = None,
        **topology: Any,
    ) -> None:
        if convert_conv_op_to_dim(conv_op) != 2:
            raise NotImplementedError(f"{type(self).__name__} classifies 2-D images; train it with a 2d configuration")
        features = self.build_features()
        first = next(module for module in features.modules() if isinstance(module, nn.Conv2d))
        if first.in_channels != input_channels:
            first.in_channels = input_channels
            first.weight = nn.Parameter(torch.empty(first.out_channels, input_channels, *first.kernel_size))
            first.reset_parameters()
        super().__init__(
            features,
            self.build_head(num_tumour_classes),
            conv_op,
            strides,
            num_classes,
            deep_supervision,
            sigmoid_segmentation,
        )
        self.features_are_frozen = self.frozen if freeze_features is None else freeze_features
        if self.features_are_frozen:
            self.encoder.requires_grad_(False)

    @staticmethod
    def build_features() -> nn.Sequential:
        """Features (B, num_features, Y / 32, X / 32) of an RGB image, named as in torchvision's model."""
        raise NotImplementedError("each network has its own")

    @classmethod
    def build_head(cls, num_tumour_classes: int) -> nn.Module:
        """Classification head on the features."""
        return DenseClassificationHead(nn.Conv2d, cls.num_features, num_tumour_classes)

    def load_pretrained(self, weights: Mapping[str, torch.Tensor]) -> LoadReport:
        """Load ImageNet weights; the classification head keeps its own.

        Args:
            weights: of torchvision's model.

        Raises:
            ValueError: they are of another network.
        """
        report = load_matching(self.encoder, weights, lambda name: _OLD_DENSENET_KEY.sub(r"\1\2", name))
        if report.missing:
            name, reason = next(iter(report.missing.items()))
            raise ValueError(
                f"these are not the weights of {self.pretrained_network}: {name} and {len(report.missing) - 1} others "
                f"are not loaded, {reason}"
            )
        return report

    def train(self, mode: bool = True) -> "TorchvisionClassifier":
        """As in torch; frozen features stay in evaluation mode, batch norm's statistics included."""
        super().train(mode)
        if self.features_are_frozen:
            self.encoder.eval()
        return self

    def deepest_features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the standardised image.

        Raises:
            ValueError: the image is smaller than 32 × 32 pixels.
        """
        if min(x.shape[2:]) < SMALLEST_EDGE:
            raise ValueError(
                f"{type(self).__name__} needs patches of {SMALLEST_EDGE} × {SMALLEST_EDGE} pixels at least, got "
                f"{tuple(x.shape[2:])}; raise the patch size of the plan"
            )
        return self.encoder(self.standardise(x))

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """What the encoder gets for an image (B, C, Y, X)."""
        return standardise(x, self.input_scale, self.input_offset)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's memory estimate for a patch of ``input_size``: elements of all convolutions' outputs.

        Frozen features keep fewer in training; the estimate does not go into that.
        """
        return convolution_elements(self.encoder, input_size)


class FTCNN(TorchvisionClassifier):
    """FT-CNN of paper 003 (sections 2.3 and 2.4): frozen VGG19 features, dense 512 and 1024, dropout 0.2.

    VGG19 gives 8×8 features of 256×256 pixels, which the dense layers read flattened; of other sizes they are pooled to
    8×8.
    """

    pretrained_network = "vgg19"
    frozen = True
    num_features = 512

    @staticmethod
    def build_features() -> nn.Sequential:
        """VGG19 without its dense layers."""
        return nn.Sequential(OrderedDict(features=vgg.make_layers(vgg.cfgs["E"])))

    @classmethod
    def build_head(cls, num_tumour_classes: int) -> nn.Module:
        """The paper's dense layers."""
        return DenseClassificationHead(
            nn.Conv2d, cls.num_features, num_tumour_classes, hidden_features=(512, 1024), dropout=0.2, pooled_edge=8
        )


class ResNet50Classifier(TorchvisionClassifier):
    """ResNet-50 (He et al. 2016), fine-tuned."""

    pretrained_network = "resnet50"
    num_features = 2048

    @staticmethod
    def build_features() -> nn.Sequential:
        """ResNet-50 without pooling and dense layer."""
        return _children_without(models.resnet50(), "avgpool", "fc")


class DenseNet121Classifier(TorchvisionClassifier):
    """DenseNet-121 (Huang et al. 2017), fine-tuned."""

    pretrained_network = "densenet121"
    num_features = 1024

    @staticmethod
    def build_features() -> nn.Sequential:
        """DenseNet-121 without pooling and dense layer."""
        return nn.Sequential(OrderedDict(features=models.densenet121().features, relu=nn.ReLU(inplace=True)))


class GoogLeNetClassifier(TorchvisionClassifier):
    """GoogLeNet (Szegedy et al. 2015) without auxiliary classifiers, fine-tuned.

    Its weights expect intensities in [-1, 1], to which torchvision converts ImageNet-normalised colours one by one;
    here their mean does.
    """

    pretrained_network = "googlenet"
    num_features = 1024
    input_scale, input_offset = imagenet_scale_and_offset((0.5,), (0.5,))

    @staticmethod
    def build_features() -> nn.Sequential:
        """GoogLeNet without pooling, dropout and dense layer."""
        network = models.googlenet(aux_logits=False, transform_input=False, init_weights=False)
        return _children_without(network, "avgpool", "dropout", "fc")


def _children_without(network: nn.Module, *names: str) -> nn.Sequential:
    """The children of a network that applies them one after another, but for the last few."""
    return nn.Sequential(OrderedDict((name, child) for name, child in network.named_children() if name not in names))
