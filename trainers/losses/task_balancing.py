"""How the segmentation loss and the class loss are brought together in one backward pass.

Paper 001 leaves uncertainty weighting, gradient normalisation and gradient surgery to future work; here all are options
of every multi-task trainer, see :mod:`braintum.trainers.recipes.settings`.
"""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import nn

STATE, NAME = "task_balancing_state", "task_balancing"
"""Keys of what was learned in a checkpoint, and of how; both are absent where nothing is learned."""

LOG_VARIANCES = "task_log_variances"
"""Key by which earlier checkpoints hold what uncertainty weighting has learned."""

Scale = Callable[[torch.Tensor], torch.Tensor]
"""Multiplies a loss as the gradient scaler wants it."""


class FixedWeights(nn.Module):
    """The weighted sum of both losses.

    Attributes:
        backward_passes: through the network.
        learning_rate: of what is learned; None for that of the network.
    """

    backward_passes = 1
    learning_rate: float | None = None

    def backward(
        self,
        losses: tuple[torch.Tensor, torch.Tensor],
        weights: tuple[float, float],
        parameters: Sequence[nn.Parameter],
        scale: Scale,
        has_classes: bool,
    ) -> None:
        """Compute the gradients.

        Args:
            losses: of segmentation and classification.
            weights: of both, as the recipe has them.
            parameters: of the network.
            scale: of the gradient scaler.
            has_classes: whether any case of the batch has a class.
        """
        scale(weights[0] * losses[0] + weights[1] * losses[1]).backward()


class UncertaintyWeighting(FixedWeights):
    """Learned weights from the homoscedastic uncertainty of each task (Kendall et al. 2018, section 3).

    exp(-s) · loss + s / 2 for each task, s = log σ² learned, the form of its equation 10 for a likelihood from a
    softmax; the recipe's weights stay in front of it. A loss has to be positive for that (a negative one would send σ
    to zero), so the segmentation loss is taken from its lowest value.

    Args:
        lowest_segmentation_loss: of a perfect prediction.
    """

    def __init__(self, lowest_segmentation_loss: float) -> None:
        super().__init__()
        self.lowest_segmentation_loss = lowest_segmentation_loss
        self.log_variances = nn.Parameter(torch.zeros(2))

    def backward(
        self,
        losses: tuple[torch.Tensor, torch.Tensor],
        weights: tuple[float, float],
        parameters: Sequence[nn.Parameter],
        scale: Scale,
        has_classes: bool,
    ) -> None:
        """See :class:`FixedWeights`; a batch without classes says nothing about the uncertainty of the class."""
        scale(self.total(losses, weights, has_classes)).backward()

    def total(
        self, losses: tuple[torch.Tensor, torch.Tensor], weights: tuple[float, float], has_classes: bool
    ) -> torch.Tensor:
        """What is minimised."""
        terms = torch.stack([losses[0].float() - self.lowest_segmentation_loss, losses[1].float()])
        counts = terms.new_tensor([weights[0], weights[1] * has_classes])
        return (counts * (torch.exp(-self.log_variances) * terms + self.log_variances / 2)).sum()


class PCGrad(FixedWeights):
    """Gradient surgery (Yu et al. 2020, algorithm 1) on the parameters that both tasks reach.

    Where the weighted gradients of the two tasks point against each other, each loses its component along the other.
    Parameters of one task keep their gradient.
    """

    backward_passes = 2

    def backward(
        self,
        losses: tuple[torch.Tensor, torch.Tensor],
        weights: tuple[float, float],
        parameters: Sequence[nn.Parameter],
        scale: Scale,
        has_classes: bool,
    ) -> None:
        """See :class:`FixedWeights`."""
        trainable, (first, second), shared = _gradients(losses, weights, parameters, scale)
        conflict_free = iter(without_conflict(_of(first, shared), _of(second, shared)))
        for parameter, is_shared, a, b in zip(trainable, shared, first, second, strict=True):
            parameter.grad = next(conflict_free) if is_shared else b if a is None else a


class GradNorm(FixedWeights):
    """Learned weights that let both tasks train at similar rates (Chen et al. 2018, algorithm 1).

    A task's weight follows the norm of its gradient on the parameters that both reach: towards the mean of both norms
    times (its loss relative to its first one, over the mean of both) ** ``asymmetry``. The recipe's weights stay in
    front. Norms are those of all shared parameters, where the authors take the last shared layer.

    Args:
        lowest_segmentation_loss: of a perfect prediction; ratios are taken from there.
        asymmetry: how strongly a task that lags behind is drawn up; the authors' for tasks of different kinds.
    """

    backward_passes = 2
    learning_rate = 0.025  # the authors'
    first_losses: torch.Tensor

    def __init__(self, lowest_segmentation_loss: float, asymmetry: float = 1.5) -> None:
        super().__init__()
        self.lowest_segmentation_loss = lowest_segmentation_loss
        self.asymmetry = asymmetry
        self.task_weights = nn.Parameter(torch.ones(2))
        self.register_buffer("first_losses", torch.zeros(2))  # zero until they are known

    def backward(
        self,
        losses: tuple[torch.Tensor, torch.Tensor],
        weights: tuple[float, float],
        parameters: Sequence[nn.Parameter],
        scale: Scale,
        has_classes: bool,
    ) -> None:
        """See :class:`FixedWeights`; a batch without classes leaves the weights as they are."""
        trainable, (first, second), shared = _gradients(losses, weights, parameters, scale)
        with torch.no_grad():
            self.task_weights.clamp_(min=_SMALLEST_WEIGHT)
            self.task_weights.mul_(2 / self.task_weights.sum())
            norms = [torch.as_tensor(_product(part, part)).sqrt() for part in (_of(first, shared), _of(second, shared))]
            if has_classes:
                self.task_weights.grad = self._gradient(losses, torch.stack(norms).to(self.task_weights))
            else:
                self.task_weights.grad = torch.zeros_like(self.task_weights)
            for parameter, *parts in zip(trainable, first, second, strict=True):
                reached = [w * part for w, part in zip(self.task_weights, parts, strict=True) if part is not None]
                parameter.grad = torch.stack(reached).sum(0) if reached else None

    def _gradient(self, losses: tuple[torch.Tensor, torch.Tensor], norms: torch.Tensor) -> torch.Tensor:
        """Of the sum of |weight · norm - wanted| with respect to the weights, with what is wanted fixed."""
        values = torch.stack([losses[0].float() - self.lowest_segmentation_loss, losses[1].float()])
        self.first_losses.copy_(torch.where(self.first_losses > 0, self.first_losses, values))
        rates = values / self.first_losses
        sizes = self.task_weights * norms
        wanted = sizes.mean() * (rates / rates.mean()) ** self.asymmetry
        return torch.sign(sizes - wanted) * norms


_SMALLEST_WEIGHT = 1e-2


def _gradients(
    losses: tuple[torch.Tensor, torch.Tensor],
    weights: tuple[float, float],
    parameters: Sequence[nn.Parameter],
    scale: Scale,
) -> tuple[list[nn.Parameter], tuple[Any, Any], list[bool]]:
    """Parameters that are trained, the weighted gradients of both tasks (None where a task does not reach), and
    whether both do."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    first, second = (
        torch.autograd.grad(scale(weight * loss), trainable, retain_graph=keep, allow_unused=True)
        for weight, loss, keep in zip(weights, losses, (True, False), strict=True)
    )
    return trainable, (first, second), [a is not None and b is not None for a, b in zip(first, second, strict=True)]


def _of(gradient: Sequence[torch.Tensor], shared: Sequence[bool]) -> list[torch.Tensor]:
    return list(compress(gradient, shared))


def without_conflict(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sum of two gradients, each projected onto the normal plane of the other if they conflict.

    Args:
        first: gradient of one task, one tensor a parameter.
        second: of the other.
    """
    products = [_product(first, second), _product(first, first), _product(second, second)]
    dot, first_square, second_square = (torch.as_tensor(value) for value in products)
    if not dot < 0:  # no conflict, or an overflow that the gradient scaler will find
        return [a + b for a, b in zip(first, second, strict=True)]
    # a - (a·b / b·b) b  +  b - (a·b / a·a) a
    return [(1 - dot / first_square) * a + (1 - dot / second_square) * b for a, b in zip(first, second, strict=True)]


def _product(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor | float:
    return sum((a.float() * b.float()).sum() for a, b in zip(first, second, strict=True))


def build_balancing(name: str, lowest_segmentation_loss: float, is_ddp: bool) -> FixedWeights:
    """The balancing that a user asked for.

    Args:
        name: one of :data:`braintum.trainers.recipes.settings.TASK_BALANCING`.
        lowest_segmentation_loss: of a perfect prediction.
        is_ddp: whether several processes train.

    Raises:
        NotImplementedError: another one than fixed weights with several processes.
        ValueError: an unknown name.
    """
    if name == "fixed":
        return FixedWeights()
    if is_ddp:
        raise NotImplementedError(
            f"braintum_task_balancing={name} trains on one GPU: its gradients pass by what DDP averages. Train without "
            "-num_gpus, or with fixed weights"
        )
    if name == "uncertainty":
        return UncertaintyWeighting(lowest_segmentation_loss)
    if name == "pcgrad":
        return PCGrad()
    if name == "gradnorm":
        return GradNorm(lowest_segmentation_loss)
    raise ValueError(f"unknown balancing of the tasks: {name!r}")
