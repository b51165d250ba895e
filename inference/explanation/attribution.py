"""Which voxels of a window speak for a class: Grad-CAM, HiResCAM and integrated gradients of a class logit.

- Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391): features weighted with the mean gradient of each
  channel, positive part.
- HiResCAM (Draelos and Carin 2020, https://arxiv.org/abs/2011.08891): features times gradient position by position,
  positive part. The mean over positions makes Grad-CAM blind to a head that weights positions, as ours weight them by
  the predicted tumour; this one is not.
- Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365): signed, sums to the difference that
  the image makes against a baseline. Instance norm, which nnU-Net's networks begin with, hides the contrast of an
  image: between a constant baseline and the image nearly all change happens within the first tenth of the path,
  which evenly spread steps miss. So the path is divided in geometric steps, and further until the sum agrees.

Gradients and quadrature are captum's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, LayerGradientXActivation
from torch import nn

SMALLEST_EDGE = 7
"""Positions along the longest axis that make a stage fine enough: those of the 7 x 7 features of ResNet's Grad-CAM."""

_PATH = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1.0)
_STEPS = 6  # of Gauss and Legendre's rule on each part of the path
_VOXELS_PER_PASS = 2**20
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class WindowAttribution:
    """What an attribution says of one window.

    Attributes:
        attribution: ([Z,] Y, X), float32, on the CPU.
        difference: class logit of the window minus that of the baseline; 0 for a method without a baseline.
        error: sum of the attribution minus ``difference``.
    """

    attribution: torch.Tensor
    difference: float = 0.0
    error: float = 0.0


Attribute = Callable[[Any, torch.Tensor, int], WindowAttribution]
"""An attribution: of a network in evaluation mode, for a window (1, C, [Z,] Y, X) and a class."""


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


def classifier_and_input(network: Any, window: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """What is explained, and for which input: a classifier that standardises its input is explained from there on.

    A standardised image does not change when its contrast does, so that no path of images leads to it.
    """
    if hasattr(network, "standardise"):
        return nn.Sequential(network.encoder, network.classification_head), network.standardise(window)
    return ClassLogits(network), window


def feature_modules(network: Any, window: torch.Tensor) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The modules whose output the classification head reads, deepest first, and the spatial sizes of these outputs.

    Args:
        network: with ``classification_head``, which takes features, or a list of them, as its first argument.
        window: (1, C, [Z,] Y, X).

    Raises:
        NotImplementedError: no module makes the deepest features.
    """
    given: list[Any] = []
    made: list[tuple[nn.Module, torch.Tensor]] = []

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            made.append((module, output))

    head = network.classification_head
    handles = [head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))]
    handles += [module.register_forward_hook(remember) for module in network.modules()]
    try:
        with torch.no_grad():
            network(window, with_classes=True)
    finally:
        for handle in handles:
            handle.remove()
    read = [given[0]] if isinstance(given[0], torch.Tensor) else list(given[0])
    read = read[-getattr(head, "num_stages", len(read)) :][::-1]
    found = []
    for features in read:
        makers = [module for module, output in made if output is features]
        if not makers:
            break  # made by a function: there is nothing to hold on to
        found.append((makers[-1], tuple(features.shape[2:])))  # the outermost module finishes last
    if not found:
        raise NotImplementedError(
            f"no module of {type(network).__name__} makes the features that its classification head reads; explain it "
            "with integrated gradients"
        )
    return found


def choose_stage(sizes: list[tuple[int, ...]], stage: int | None) -> int:
    """Index of the stage to explain, 0 for the deepest.

    Args:
        sizes: spatial sizes of the features, deepest first.
        stage: the one that is asked for; None for the deepest with :data:`SMALLEST_EDGE` positions along its longest
            axis, or the finest if none has.

    Raises:
        ValueError: there is no such stage.
    """
    if stage is None:
        fine_enough = (index for index, size in enumerate(sizes) if max(size) >= SMALLEST_EDGE)
        return next(fine_enough, len(sizes) - 1)
    if not 0 <= stage < len(sizes):
        raise ValueError(
            f"there is no stage {stage}: the classification head reads {len(sizes)}, 0 is the deepest; give a number "
            f"below {len(sizes)}"
        )
    return stage


def class_activation_map(method: type, stage: int | None) -> Attribute:
    """Grad-CAM or HiResCAM, interpolated to the window.

    Args:
        method: captum's class.
        stage: see :func:`choose_stage`.
    """

    def attribute(network: Any, window: torch.Tensor, class_index: int) -> WindowAttribution:
        modules = feature_modules(network, window)
        layer, _ = modules[choose_stage([size for _, size in modules], stage)]
        classifier, x = classifier_and_input(network, window)
        explained = method(classifier, layer).attribute(x, target=class_index).sum(1, keepdim=True).relu()
        explained = LayerAttribution.interpolate(explained, tuple(x.shape[2:]), _INTERPOLATION[x.ndim - 2])
        return WindowAttribution(explained[0, 0].detach().float().cpu())

    return attribute


def grad_cam(stage: int | None = None) -> Attribute:
    """Grad-CAM on the features of a stage, see :func:`choose_stage`; at least 0 everywhere."""
    return class_activation_map(LayerGradCam, stage)


def hires_cam(stage: int | None = None) -> Attribute:
    """HiResCAM on the features of a stage, see :func:`choose_stage`; at least 0 everywhere."""
    return class_activation_map(LayerGradientXActivation, stage)


def integrated_gradients(tolerance: float = 0.05, max_parts: int = 24) -> Attribute:
    """Integrated gradients against the darkest intensity of each channel of the window; channels are summed.

    Args:
        tolerance: of the errors of all parts of the path together, as a share of what the image changes.
        max_parts: parts that the path is divided into at most, six forward and backward passes each.
    """

    def attribute(network: Any, window: torch.Tensor, class_index: int) -> WindowAttribution:
        classifier, x = classifier_and_input(network, window)
        x = x.detach()
        baseline = x.amin(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
        integrate = IntegratedGradients(classifier)

        def part(start: float, end: float) -> tuple[float, float, float, torch.Tensor]:
            """Start, end, error and attribution of a part of the straight path from baseline to image."""
            attribution, error = integrate.attribute(
                torch.lerp(baseline, x, end),
                torch.lerp(baseline, x, start),
                target=class_index,
                n_steps=_STEPS,
                internal_batch_size=max(1, _VOXELS_PER_PASS // x[0].numel()),
                return_convergence_delta=True,
            )
            return start, end, float(error), attribution.detach().double().sum(1)[0]

        with torch.no_grad():
            difference = float((classifier(x) - classifier(baseline))[0, class_index])
        parts = [part(start, end) for start, end in zip(_PATH[:-1], _PATH[1:], strict=True)]
        while sum(abs(error) for _, _, error, _ in parts) > tolerance * abs(difference) and len(parts) < max_parts:
            worst = max(parts, key=lambda one: abs(one[2]))
            parts.remove(worst)
            start, end = worst[:2]
            # the middle of a part far from the baseline is the geometric one, as everything scales with the distance
            middle = (start * end) ** 0.5 if start > 0 else end / 4
            parts += [part(start, middle), part(middle, end)]
        attribution = torch.stack([one[3] for one in parts]).sum(0)
        error = float(attribution.sum()) - difference
        return WindowAttribution(attribution.float().cpu(), difference, error)

    return attribute


METHODS: dict[str, Callable[..., Attribute]] = {
    "gradcam": grad_cam,
    "hirescam": hires_cam,
    "integrated_gradients": integrated_gradients,
}
"""Method by its name on the command line."""
