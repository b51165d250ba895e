"""Learning-rate schedules."""

from collections.abc import Sequence

from torch.optim import Optimizer


class PerGroupPolyLR:
    """nnU-Net's polynomial decay for each parameter group from its own initial rate, with an optional linear warm-up.

    nnU-Net's own scheduler writes one rate to all groups.

    Args:
        optimizer: the groups' present ``lr`` are their initial rates.
        num_epochs: of the whole training.
        warmup_epochs: one number a group; rate (epoch + 1) / (warmup_epochs + 1) · initial before that epoch.
        exponent: of the decay.
    """

    def __init__(
        self, optimizer: Optimizer, num_epochs: int, warmup_epochs: Sequence[int], exponent: float = 0.9
    ) -> None:
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.warmup_epochs = list(warmup_epochs)
        self.exponent = exponent
        self.initial_lrs = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of an epoch, counted from 0."""
        decay = (1 - epoch / self.num_epochs) ** self.exponent
        for group, initial, warmup in zip(
            self.optimizer.param_groups, self.initial_lrs, self.warmup_epochs, strict=True
        ):
            group["lr"] = initial * decay * min(1.0, (epoch + 1) / (warmup + 1))
