"""What is explained: the logit of a class, or the mask of a structure.

The score of a mask is the mean log-odds of the structure over the voxels in which the model predicts it: of a region
its logit; of labels, which exclude each other, the log-sum-exp of their logits minus that of all others, since a logit
alone does not say how sure the network is. Grad-CAM of this score is Seg-Grad-CAM (Vinogradova et al. 2020,
https://arxiv.org/abs/2002.11434).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class ClassLogits(nn.Module):
    """A network of ours as a classifier: (B, C, [Z,] Y, X) to class logits (B, classes).

    Where the head weights features by the predicted tumour, training stops the gradient there; here it passes, because
    the segmentation is part of how the class comes about.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head = self.network.classification_head
        if not getattr(head, "detaches_segmentation", False):
            return self.network(x, with_classes=True)[1]
        head.detaches_segmentation = False
        try:
            return self.network(x, with_classes=True)[1]
        finally:
            head.detaches_segmentation = True


class MaskScore(nn.Module):
    """A network that segments as a scorer of a mask: (B, C, [Z,] Y, X) to (B, 1), see the module.

    Args:
        network: of any trainer.
        channels: its outputs that make up the structure.
        sigmoid_segmentation: True where outputs are regions, False where they are exclusive labels.
        mask: bool ([Z,] Y, X), the voxels that count.
    """

    def __init__(self, network: Any, channels: Sequence[int], sigmoid_segmentation: bool, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask: torch.Tensor
        self.network = network
        self.channels, self.sigmoid_segmentation = list(channels), sigmoid_segmentation
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x).float()
        part = logits[:, self.channels]
        if self.sigmoid_segmentation:
            odds = part.amax(1)
        else:
            rest = [channel for channel in range(logits.shape[1]) if channel not in self.channels]
            odds = part.logsumexp(1) - logits[:, rest].logsumexp(1)
        return odds[:, self.mask].mean(1, keepdim=True)


@dataclass(frozen=True)
class Subject:
    """What is explained of one window.

    Attributes:
        index: of the score among those that the scorer gives.
    """

    index: int = 0

    def scorer_and_input(self, network: Any, window: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
        """What gives the score, (B, …) to (B, scores), and for which input."""
        raise NotImplementedError

    def features(self, network: Any, window: torch.Tensor) -> list[torch.Tensor]:
        """Tensors that an activation map may be of, highest resolution first; computed under hooks of the caller."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassSubject(Subject):
    """The logit of class number ``index``."""

    def scorer_and_input(self, network: Any, window: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
        """A classifier that standardises its input is explained from there on.

        A standardised image does not change when its contrast does, so that no path of images leads to it.
        """
        if hasattr(network, "standardise"):
            return nn.Sequential(network.encoder, network.classification_head), network.standardise(window)
        return ClassLogits(network), window

    def features(self, network: Any, window: torch.Tensor) -> list[torch.Tensor]:
        """What the classification head reads."""
        head, given = network.classification_head, []
        handle = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        try:
            network(window, with_classes=True)
        finally:
            handle.remove()
        read = [given[0]] if isinstance(given[0], torch.Tensor) else list(given[0])
        return read[-getattr(head, "num_stages", len(read)) :]


@dataclass(frozen=True)
class AttentionSubject(Subject):
    """The masks of adaptive masked attention: where it looks. There is no score.

    Attributes:
        name: of the attention in the network.
    """

    name: str = ""


@dataclass(frozen=True)
class MaskSubject(Subject):
    """The mask of a structure.

    Attributes:
        channels: outputs of the network that make up the structure.
        sigmoid_segmentation: True where outputs are regions, False where they are exclusive labels.
        mask: bool ([Z,] Y, X), the voxels of the window in which it is predicted.
    """

    channels: tuple[int, ...] = ()
    sigmoid_segmentation: bool = False
    mask: torch.Tensor | None = None

    def scorer_and_input(self, network: Any, window: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
        """See :class:`MaskScore`."""
        if self.mask is None:
            raise ValueError("no mask to explain")
        return MaskScore(network, self.channels, self.sigmoid_segmentation, self.mask.to(window.device)), window

    def features(self, network: Any, window: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps that the encoder gives; none of a network that has no encoder."""
        given: list[Any] = []
        if not isinstance(encoder := getattr(network, "encoder", None), nn.Module):
            return []
        handle = encoder.register_forward_hook(lambda module, inputs, output: given.append(output))
        try:
            network(window)
        finally:
            handle.remove()
        maps = given[:1] if isinstance(given[0], torch.Tensor) else list(given[0])
        return [features for features in maps if features.ndim == window.ndim]
