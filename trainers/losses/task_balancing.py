"""How the segmentation loss and the class loss are brought together in one backward pass.

Paper 001 leaves "uncertainty weighting, gradient surgery" to future work; here both are options of every multi-task
trainer, see :mod:`braintum.trainers.recipes.settings`.
"""

from collections.abc import Callable, Sequence
from itertools import compress

import torch
from torch import nn

LOG_VARIANCES = "task_log_variances"
"""Key of the learned weights in a checkpoint."""

Scale = Callable[[torch.Tensor], torch.Tensor]
"""Multiplies a loss as the gradient scaler wants it."""


class FixedWeights(nn.Module):
    """The weighted sum of both losses.

    Attributes:
        backward_passes: through the network.
    """

    backward_passes = 1

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
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        first, second = (
            torch.autograd.grad(scale(weight * loss), trainable, retain_graph=keep, allow_unused=True)
            for weight, loss, keep in zip(weights, losses, (True, False), strict=True)
        )
        shared = [a is not None and b is not None for a, b in zip(first, second, strict=True)]
        conflict_free = iter(without_conflict(list(compress(first, shared)), list(compress(second, shared))))
        for parameter, is_shared, a, b in zip(trainable, shared, first, second, strict=True):
            parameter.grad = next(conflict_free) if is_shared else b if a is None else a


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
    raise ValueError(f"unknown balancing of the tasks: {name!r}")
