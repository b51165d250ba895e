"""batchgeneratorsv2's transforms of intensities, on batches and on any device.

All channels of all samples that a step changes are gathered into one tensor (n, [Z,] Y, X), changed at once and put
back. Everything is float32 arithmetic without convolutions or matrix products, whose precision a GPU may lower.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from braintum.trainers.augmentation.augmentation_parameters import Channels, Distribution, Parameters, Step

_EPSILON = 1e-7  # batchgeneratorsv2's


@dataclass(frozen=True)
class IntensityStep(Step):
    """Changes some channels of some samples.

    Attributes:
        channels: which.
    """

    channels: Channels

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Step`."""
        index = parameters["channels"]
        if not len(index):
            return data, target
        flat = data.flatten(0, 1)  # (B·C, [Z,] Y, X)
        flat.index_copy_(0, index, self.change(flat.index_select(0, index), parameters))
        return flat.unflatten(0, data.shape[:2]), target

    @abstractmethod
    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """The changed images.

        Args:
            images: (n, [Z,] Y, X), a copy.
            parameters: n of each.
        """


@dataclass(frozen=True)
class GaussianNoise(IntensityStep):
    """Adds noise.

    Attributes:
        sigma: of the noise; batchgeneratorsv2 calls it a variance and uses it as a standard deviation.
    """

    sigma: Distribution

    @staticmethod
    def of(transform: Any) -> "GaussianNoise":
        """From ``GaussianNoiseTransform``."""
        channels = Channels(transform.p_per_channel, transform.synchronize_channels)
        return GaussianNoise(channels, Distribution.of(transform.noise_variance))

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`; the noise itself is drawn on the device, from ``seed``."""
        index = self.channels.draw(active, num_channels, generator)
        sigma = self.channels.numbers(self.sigma, index, active, num_channels, generator).float()
        seed = int(torch.randint(2**62, (), generator=generator))
        return {"channels": index, "sigma": sigma, "seed": seed}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        generator = torch.Generator(images.device).manual_seed(parameters["seed"])
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return noise.mul_(per_image(parameters["sigma"], images)).add_(images)


@dataclass(frozen=True)
class MultiplicativeBrightness(IntensityStep):
    """Multiplies intensities.

    Attributes:
        factor: distribution of the factor.
    """

    factor: Distribution

    @staticmethod
    def of(transform: Any) -> "MultiplicativeBrightness":
        """From ``MultiplicativeBrightnessTransform``."""
        channels = Channels(transform.p_per_channel, transform.synchronize_channels)
        return MultiplicativeBrightness(channels, Distribution.of(transform.multiplier_range))

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`."""
        index = self.channels.draw(active, num_channels, generator)
        factor = self.channels.numbers(self.factor, index, active, num_channels, generator)
        return {"channels": index, "factor": factor.float()}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        return images.mul_(per_image(parameters["factor"], images))


@dataclass(frozen=True)
class AdditiveBrightness(IntensityStep):
    """Shifts intensities.

    Attributes:
        mean: of the normally distributed shift.
        deviation: standard deviation of it.
    """

    mean: float
    deviation: float

    @staticmethod
    def of(transform: Any) -> "AdditiveBrightness":
        """From ``BrightnessAdditiveTransform``."""
        channels = Channels(transform.p_per_channel, transform.synchronize_channels)
        return AdditiveBrightness(channels, float(transform.mu), float(transform.sigma))

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`."""
        index = self.channels.draw(active, num_channels, generator)
        if self.channels.synchronize:
            # batchgeneratorsv2 draws the common shift uniformly between mean and deviation
            bounds = Distribution(((self.mean, self.deviation),))
            shift = self.channels.numbers(bounds, index, active, num_channels, generator)
        else:
            normal = torch.randn(len(active) * num_channels, generator=generator, dtype=torch.float64)
            shift = self.mean + self.deviation * normal[index]
        return {"channels": index, "shift": shift.float()}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        return images.add_(per_image(parameters["shift"], images))


@dataclass(frozen=True)
class Contrast(IntensityStep):
    """Multiplies the distance from the mean.

    Attributes:
        factor: distribution of the factor.
        preserve_range: whether intensities are clipped to the range that they had.
    """

    factor: Distribution
    preserve_range: bool

    @staticmethod
    def of(transform: Any) -> "Contrast":
        """From ``ContrastTransform``."""
        channels = Channels(transform.p_per_channel, transform.synchronize_channels)
        return Contrast(channels, Distribution.of(transform.contrast_range), transform.preserve_range)

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`."""
        index = self.channels.draw(active, num_channels, generator)
        factor = self.channels.numbers(self.factor, index, active, num_channels, generator)
        return {"channels": index, "factor": factor.float()}

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        axes = _spatial_axes(images)
        mean = images.mean(axes, keepdim=True)
        low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        images.sub_(mean).mul_(per_image(parameters["factor"], images)).add_(mean)
        return torch.clamp(images, low, high) if self.preserve_range else images


@dataclass(frozen=True)
class Gamma(IntensityStep):
    """Raises intensities, rescaled to [0, 1], to a power.

    Attributes:
        exponent: distribution of the power.
        p_invert: probability for each channel to be inverted before and after.
        p_retain_stats: probability for each channel to keep its mean and standard deviation.
    """

    exponent: Distribution
    p_invert: float
    p_retain_stats: float

    @staticmethod
    def of(transform: Any) -> "Gamma":
        """From ``GammaTransform``."""
        return Gamma(
            Channels(transform.p_per_channel, transform.synchronize_channels),
            Distribution.of(transform.gamma),
            transform.p_invert_image,
            transform.p_retain_stats,
        )

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`."""
        index = self.channels.draw(active, num_channels, generator)
        exponent = self.channels.numbers(self.exponent, index, active, num_channels, generator)
        events = torch.rand((len(index), 2), generator=generator, dtype=torch.float64)
        return {
            "channels": index,
            "exponent": exponent.float(),
            "retains": events[:, 0] < self.p_retain_stats,
            "inverts": events[:, 1] < self.p_invert,
        }

    def change(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """See :class:`IntensityStep`."""
        axes = _spatial_axes(images)
        sign = per_image(1 - 2 * parameters["inverts"].to(images.dtype), images)
        images = images.mul_(sign)
        mean, deviation = images.mean(axes, keepdim=True), images.std(axes, keepdim=True)
        low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        extent = high - low
        images.sub_(low).div_(extent.clamp(min=_EPSILON))
        images.pow_(per_image(parameters["exponent"], images)).mul_(extent).add_(low)
        factor = deviation / images.std(axes, keepdim=True).clamp(min=_EPSILON)
        retained = (images - images.mean(axes, keepdim=True)).mul_(factor).add_(mean)
        return torch.where(per_image(parameters["retains"], images), retained, images).mul_(sign)


def _spatial_axes(images: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, images.ndim))


def per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(n,) → (n, [1,] 1, 1)."""
    return values.view(-1, *[1] * (images.ndim - 1))
