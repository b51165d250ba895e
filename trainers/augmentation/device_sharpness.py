"""batchgeneratorsv2's blur and low resolution, on batches and on any device.

See :mod:`braintum.trainers.augmentation.device_intensity`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from braintum.trainers.augmentation.augmentation_parameters import Channels, Distribution, Parameters
from braintum.trainers.augmentation.device_intensity import IntensityStep, per_image

_TRUNCATE = 6.0  # batchgeneratorsv2's: the kernel of its blur is six standard deviations wide
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class GaussianBlur(IntensityStep):
    """Blurs along each axis; what lies beyond the patch is its reflection.

    Attributes:
        sigma: of the kernel, in pixels.
        synchronize_axes: whether it is the same along all axes.
        num_axes: of the images.
    """

    sigma: Distribution
    synchronize_axes: bool
    num_axes: int

    @staticmethod
    def of(transform: Any, num_axes: int) -> "GaussianBlur":
        """From ``GaussianBlurTransform``."""
        channels = Channels(transform.p_per_channel, transform.synchronize_channels)
        return GaussianBlur(channels, Distribution.of(transform.blur_sigma), transform.synchronize_axes, num_axes)

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`~braintum.trainers.augmentation.augmentation_parameters.Step`.

        ``kernels`` holds weights (n, K) for each axis.
        """
        index = self.channels.draw(active, num_channels, generator)
        num_numbers = 1 if self.synchronize_axes else self.num_axes
        sigma = self.channels.numbers(self.sigma, index, active, num_channels, generator, num_numbers)
        sigma = sigma.expand(-1, self.num_axes)
        kernels = [gaussian_kernels(column) for column in sigma.unbind(1)] if len(index) else []
        return {"channels": index, "sigma": sigma, "kernels": kernels}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        for axis, kernels in enumerate(parameters["kernels"], start=1):
            images = _blur(images, kernels, axis)
        return images


def gaussian_kernels(sigmas: torch.Tensor) -> torch.Tensor:
    """Kernels of batchgeneratorsv2's width, padded with zeros to the widest: (n,) → (n, K)."""
    # the odd number nearest to the width; of two equally near ones the upper
    widths = [_nearest_odd(float(sigma) * _TRUNCATE + 0.5) for sigma in sigmas]
    half = max(widths) // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float32)
    density = torch.exp(-0.5 * (offsets / sigmas.float()[:, None]) ** 2)
    density = density * (offsets.abs() <= torch.tensor(widths)[:, None] // 2)
    return density / density.sum(1, keepdim=True)


def _nearest_odd(value: float) -> int:
    rounded = round(value)
    if rounded % 2:
        return rounded
    return rounded + 1 if value >= rounded else rounded - 1


def _blur(images: torch.Tensor, kernels: torch.Tensor, axis: int) -> torch.Tensor:
    """Convolve (n, [Z,] Y, X) with (n, K) along an axis, as a sum over shifted images."""
    half = kernels.shape[1] // 2
    padding = [0, 0] * (images.ndim - 1)
    padding[2 * (images.ndim - 1 - axis)] = padding[2 * (images.ndim - 1 - axis) + 1] = half
    padded = functional.pad(images[None], padding, mode="reflect")[0]
    size = images.shape[axis]
    blurred = padded.narrow(axis, 0, size) * per_image(kernels[:, 0], images)
    for tap in range(1, kernels.shape[1]):
        blurred.addcmul_(padded.narrow(axis, tap, size), per_image(kernels[:, tap], images))
    return blurred


@dataclass(frozen=True)
class LowResolution(IntensityStep):
    """Samples an image down (nearest) and up again (linear).

    Attributes:
        scale: of the size.
        synchronize_axes: whether it is the same along all axes.
        ignored_axes: which keep their size.
        num_axes: of the images.
    """

    scale: Distribution
    synchronize_axes: bool
    ignored_axes: tuple[int, ...]
    num_axes: int

    @staticmethod
    def of(transform: Any, num_axes: int) -> "LowResolution":
        """From ``SimulateLowResolutionTransform``."""
        allowed = None if transform.allowed_channels is None else tuple(transform.allowed_channels)
        return LowResolution(
            Channels(transform.p_per_channel, transform.synchronize_channels, allowed),
            Distribution.of(transform.scale),
            transform.synchronize_axes,
            tuple(transform.ignore_axes or ()),
            num_axes,
        )

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`~braintum.trainers.augmentation.augmentation_parameters.Step`.

        ``scales`` is a list of n lists, as it decides about shapes.
        """
        index = self.channels.draw(active, num_channels, generator)
        num_numbers = 1 if self.synchronize_axes else self.num_axes
        scales = self.channels.numbers(self.scale, index, active, num_channels, generator, num_numbers)
        scales = scales.expand(-1, self.num_axes).float().clone()
        scales[:, list(self.ignored_axes)] = 1
        return {"channels": index, "scales": scales.tolist()}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`; image by image, as each has a size of its own."""
        size = images.shape[1:]
        changed = []
        for image, scales in zip(images[:, None, None], parameters["scales"], strict=True):
            small = [round(edge * scale) for edge, scale in zip(size, scales, strict=True)]
            downsampled = functional.interpolate(image, small, mode="nearest-exact")
            changed.append(functional.interpolate(downsampled, size, mode=_LINEAR[len(size)])[0, 0])
        return torch.stack(changed)
