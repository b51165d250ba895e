"""Learning-rate schedules: how a rate falls, as data, and the scheduler that nnU-Net steps once an epoch.

A decay is a function of the epoch and of the validation losses so far. It keeps no state: after a resume the log gives
the same rates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


class Decay(Protocol):
    """Share of the initial rate that is left."""

    def factor(self, epoch: int, num_epochs: int, warmup_epochs: int, val_losses: Sequence[float]) -> float:
        """The share, in (0, 1].

        Args:
            epoch: counted from 0.
            num_epochs: of the whole training.
            warmup_epochs: of the parameter group.
            val_losses: one validation loss for each epoch before this one.
        """
        ...


@dataclass(frozen=True)
class PolynomialDecay:
    """nnU-Net's: (1 - epoch / num_epochs) ** exponent."""

    exponent: float = 0.9

    def factor(self, epoch: int, num_epochs: int, warmup_epochs: int, val_losses: Sequence[float]) -> float:
        """See :class:`Decay`."""
        return (1 - epoch / num_epochs) ** self.exponent


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine, from 1 towards 0 (Loshchilov and Hutter 2017), ``cycles`` times in a training."""

    cycles: int = 1

    def factor(self, epoch: int, num_epochs: int, warmup_epochs: int, val_losses: Sequence[float]) -> float:
        """See :class:`Decay`."""
        return (1 + math.cos(math.pi * (epoch * self.cycles / num_epochs % 1))) / 2


@dataclass(frozen=True)
class ExponentialDecay:
    """The same factor from epoch to epoch once the warm-up is over, such that the last epoch has ``final``."""

    final: float = 0.01

    def factor(self, epoch: int, num_epochs: int, warmup_epochs: int, val_losses: Sequence[float]) -> float:
        """See :class:`Decay`."""
        steps = num_epochs - 1 - warmup_epochs
        return self.final ** (max(0, epoch - warmup_epochs) / steps) if steps > 0 else 1.0


@dataclass(frozen=True)
class PlateauDecay:
    """torch's ReduceLROnPlateau on the validation loss: multiplied by ``drop`` after ``patience`` idle epochs.

    An epoch is idle unless it lowers the loss by ``least``. That is a difference, as Keras has it, and not torch's
    default, a share of the loss: of a negative loss, such as minus Dice, the share makes every epoch an improvement.
    """

    drop: float
    patience: int
    least: float = 1e-4

    def factor(self, epoch: int, num_epochs: int, warmup_epochs: int, val_losses: Sequence[float]) -> float:
        """See :class:`Decay`."""
        rate_one = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        plateau = ReduceLROnPlateau(
            rate_one, factor=self.drop, patience=self.patience, threshold=self.least, threshold_mode="abs"
        )
        for loss in val_losses[:epoch]:
            plateau.step(loss)
        return rate_one.param_groups[0]["lr"]


class PerGroupLR:
    """Sets the rate of each parameter group from its own initial one, with an optional linear warm-up.

    nnU-Net's own scheduler writes one rate to all groups.

    Args:
        optimizer: the groups' present ``lr`` are their initial rates.
        num_epochs: of the whole training.
        warmup_epochs: one number a group; rate (epoch + 1) / (warmup_epochs + 1) · initial before that epoch.
        decay: of all groups.
        val_losses: gives the validation losses so far.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_epochs: int,
        warmup_epochs: Sequence[int],
        decay: Decay,
        val_losses: Callable[[], Sequence[float]] = list,
    ) -> None:
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.warmup_epochs = list(warmup_epochs)
        self.decay = decay
        self.val_losses = val_losses
        self.initial_lrs = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of an epoch, counted from 0."""
        val_losses = self.val_losses()
        for group, initial, warmup in zip(
            self.optimizer.param_groups, self.initial_lrs, self.warmup_epochs, strict=True
        ):
            decay = self.decay.factor(epoch, self.num_epochs, warmup, val_losses)
            group["lr"] = initial * decay * min(1.0, (epoch + 1) / (warmup + 1))


def epochs_without_improvement(val_losses: Sequence[float]) -> int:
    """Epochs since the lowest validation loss; 0 for none so far. Undefined losses improve nothing."""
    best, best_epoch = math.inf, -1
    for epoch, loss in enumerate(val_losses):
        if loss < best:
            best, best_epoch = loss, epoch
    return len(val_losses) - 1 - best_epoch if val_losses else 0
