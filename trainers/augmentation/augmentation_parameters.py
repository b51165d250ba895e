"""Random parameters of augmentation for whole batches, read from batchgeneratorsv2's transforms.

A transform of batchgeneratorsv2 draws for one patch, from numpy's and torch's global generators. A :class:`Step` draws
for a batch, from one generator on the CPU, with the same distributions, and applies what was drawn on any device. What
decides about shapes (which samples, which channels, which sizes) stays on the host, so that nothing waits for the GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast

Parameters = dict[str, Any]
"""Tensors, which go to the device, and numbers and lists, which stay on the host."""

SWITCH = "Set the environment variable braintum_augmentation=cpu to augment in nnU-Net's CPU workers"


class UnsupportedAugmentation(NotImplementedError):
    """A transform that has no counterpart on the device."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported on the training device. {SWITCH}")


@dataclass(frozen=True)
class Distribution:
    """Of a number: uniform in a range, each range as likely as any other.

    Attributes:
        ranges: (low, high) each; the same number twice for a constant.
    """

    ranges: tuple[tuple[float, float], ...]

    @staticmethod
    def of(random_scalar: Any) -> "Distribution":
        """What batchgeneratorsv2's ``sample_scalar`` draws from.

        Args:
            random_scalar: a number, a pair of bounds, or ``BGContrast`` of a pair.

        Raises:
            UnsupportedAugmentation: any other function, whose distribution cannot be read.
        """
        if isinstance(random_scalar, (int, float)):
            return Distribution(((float(random_scalar), float(random_scalar)),))
        if isinstance(random_scalar, (tuple, list)):
            low, high = random_scalar
            return Distribution(((float(low), float(high)),))
        if type(random_scalar) is BGContrast and isinstance(random_scalar.contrast_range, (tuple, list)):
            low, high = (float(bound) for bound in random_scalar.contrast_range)
            return Distribution(((low, 1.0), (1.0, high)) if low < 1 else ((low, high),))
        raise UnsupportedAugmentation(f"a random number that the function {random_scalar!r} draws")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Independent numbers, float64, of that shape."""
        low, high = torch.tensor(self.ranges, dtype=torch.float64).unbind(1)
        which = torch.randint(len(self.ranges), tuple(shape), generator=generator)
        share = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
        return low[which] + (high - low)[which] * share


def draw_events(probability: float, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Whether something happens, bool, independently for each element."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) < probability


class Step(ABC):
    """One transform of a batch. ``draw`` and ``apply`` are apart, so that either can be tested alone."""

    @abstractmethod
    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """Draw the parameters of a batch.

        Args:
            active: (B,) bool, the samples to change.
            num_channels: of the images.
            generator: on the CPU.
        """

    @abstractmethod
    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        """Change a batch.

        Args:
            data: (B, C, [Z,] Y, X) float32; may be changed in place.
            target: (B, 1, [Z,] Y, X); may be changed in place.
            parameters: as :meth:`draw` gave them, the tensors on the device of ``data``.
        """


@dataclass(frozen=True)
class Sometimes(Step):
    """batchgeneratorsv2's ``RandomTransform``.

    Attributes:
        step: what may happen.
        probability: for each sample.
    """

    step: Step
    probability: float

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`."""
        happens = draw_events(self.probability, active.shape, generator)
        return self.step.draw(active & happens, num_channels, generator)

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        """See :class:`Step`."""
        return self.step.apply(data, target, parameters)


@dataclass(frozen=True)
class Channels:
    """Which channels of the active samples a transform changes.

    Attributes:
        probability: for each channel.
        synchronize: whether all channels of a sample get the same parameters.
        allowed: the only channels that may change; None for all.
    """

    probability: float
    synchronize: bool
    allowed: tuple[int, ...] | None = None

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> torch.Tensor:
        """Flat indices (n,) into the (B · C) channels of the batch, ascending."""
        chosen = active[:, None] & draw_events(self.probability, (len(active), num_channels), generator)
        if self.allowed is not None:
            is_allowed = torch.zeros(num_channels, dtype=torch.bool)
            is_allowed[list(self.allowed)] = True
            chosen &= is_allowed
        return chosen.flatten().nonzero().flatten()

    def numbers(
        self,
        distribution: Distribution,
        channels: torch.Tensor,
        active: torch.Tensor,
        num_channels: int,
        generator: torch.Generator,
        num_axes: int | None = None,
    ) -> torch.Tensor:
        """One number for each drawn channel, or ``num_axes`` of them: (n[, num_axes]) float64."""
        axes = () if num_axes is None else (num_axes,)
        drawn = distribution.draw((len(active), 1 if self.synchronize else num_channels, *axes), generator)
        return drawn.expand(len(active), num_channels, *axes).flatten(0, 1)[channels]
