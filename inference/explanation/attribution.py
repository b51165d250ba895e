"""Which voxels of a window speak for a class or a mask: Grad-CAM, HiResCAM and integrated gradients of its score.

What the score is, and which features it comes from: :mod:`braintum.inference.explanation.subjects`.

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

from braintum.inference.explanation.subjects import AttentionSubject, Subject

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
        difference: score of the window minus that of the baseline; 0 for a method without a baseline.
        error: sum of the attribution minus ``difference``.
    """

    attribution: torch.Tensor
    difference: float = 0.0
    error: float = 0.0


Attribute = Callable[[Any, torch.Tensor, Subject], WindowAttribution]
"""An attribution: of a network in evaluation mode, for a window (1, C, [Z,] Y, X) and what is explained of it."""


def feature_modules(network: Any, window: torch.Tensor, subject: Subject) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The modules that make the features behind a score, deepest first, and the spatial sizes of their outputs.

    Args:
        network: that ``subject`` is about.
        window: (1, C, [Z,] Y, X).
        subject: what is explained.

    Raises:
        NotImplementedError: no module makes the deepest features.
    """
    made: list[tuple[nn.Module, torch.Tensor]] = []

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            made.append((module, output))

    handles = [module.register_forward_hook(remember) for module in network.modules()]
    try:
        with torch.no_grad():
            read = subject.features(network, window)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for features in read[::-1]:
        makers = [module for module, output in made if output is features]
        if not makers:
            break  # made by a function: there is nothing to hold on to
        found.append((makers[-1], tuple(features.shape[2:])))  # the outermost module finishes last
    if not found:
        raise NotImplementedError(
            f"no module of {type(network).__name__} makes the features that are to be explained; explain it with "
            "integrated gradients"
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
            f"there is no stage {stage}: there are {len(sizes)} to explain, 0 is the deepest; give a number below "
            f"{len(sizes)}"
        )
    return stage


def class_activation_map(method: type, stage: int | None) -> Attribute:
    """Grad-CAM or HiResCAM, interpolated to the window.

    Args:
        method: captum's class.
        stage: see :func:`choose_stage`.
    """

    def attribute(network: Any, window: torch.Tensor, subject: Subject) -> WindowAttribution:
        modules = feature_modules(network, window, subject)
        layer, _ = modules[choose_stage([size for _, size in modules], stage)]
        scorer, x = subject.scorer_and_input(network, window)
        explained = method(scorer, layer).attribute(x, target=subject.index).sum(1, keepdim=True).relu()
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

    def attribute(network: Any, window: torch.Tensor, subject: Subject) -> WindowAttribution:
        scorer, x = subject.scorer_and_input(network, window)
        x = x.detach()
        baseline = x.amin(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
        integrate = IntegratedGradients(scorer)

        def part(start: float, end: float) -> tuple[float, float, float, torch.Tensor]:
            """Start, end, error and attribution of a part of the straight path from baseline to image."""
            attribution, error = integrate.attribute(
                torch.lerp(baseline, x, end),
                torch.lerp(baseline, x, start),
                target=subject.index,
                n_steps=_STEPS,
                internal_batch_size=max(1, _VOXELS_PER_PASS // x[0].numel()),
                return_convergence_delta=True,
            )
            return start, end, float(error), attribution.detach().double().sum(1)[0]

        with torch.no_grad():
            difference = float((scorer(x) - scorer(baseline))[0, subject.index])
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


def attention_masks(network: Any, window: torch.Tensor, subject: Subject) -> WindowAttribution:
    """Mean mask of the heads of an :class:`~braintum.inference.explanation.subjects.AttentionSubject`, in (0, 1).

    It is interpolated to the window.
    """
    if not isinstance(subject, AttentionSubject):
        raise TypeError(f"{subject} has no attention masks")
    scores: list[torch.Tensor] = []
    mask_network = network.get_submodule(subject.name).mask
    handle = mask_network.register_forward_hook(lambda module, inputs, output: scores.append(output))
    try:
        with torch.no_grad():
            network(window)
    finally:
        handle.remove()
    mask = torch.sigmoid(scores[0].float()).mean(-1)[:, None]  # (1, 1, [Z,] Y, X)
    size = tuple(window.shape[2:])
    return WindowAttribution(LayerAttribution.interpolate(mask, size, _INTERPOLATION[len(size)])[0, 0].cpu())


ATTENTION_MASKS = "attention_masks"
"""Method that shows masks of attention."""
METHODS: dict[str, Callable[..., Attribute]] = {
    "gradcam": grad_cam,
    "hirescam": hires_cam,
    "integrated_gradients": integrated_gradients,
}
"""Methods that explain a score, by their names on the command line."""
