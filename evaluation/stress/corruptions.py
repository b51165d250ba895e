"""Image faults of MRI at five severities, for the stress test: pure functions of an image and a random generator.

The faults are TorchIO's (Pérez-García et al. 2021, https://doi.org/10.1016/j.cmpb.2021.106236). Their strengths are
given relative to the image, so that one table serves slices and volumes, PNG and NIfTI: intensities in units of the
image's range (percentile 0.5 to 99.5), lengths in units of the field of view (the longest side, about 240 mm for a
head). What is random, such as the direction of a movement, is drawn once for a case and a fault, not for each severity:
a curve over severities then shows strength and not luck.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torchio import ScalarImage

SEVERITIES = (1, 2, 3, 4, 5)
Strengths = tuple[float, float, float, float, float]
"""Strength of each severity."""

_LOW, _HIGH = 0.5, 99.5
_BIAS_ORDER = 3


@dataclass(frozen=True)
class Corruption(ABC):
    """A fault of images.

    Attributes:
        strengths: of severity 1 to 5; what they measure says ``description``.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    min_sequences: ClassVar[int] = 1

    strengths: Strengths

    @abstractmethod
    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """The faulty image.

        Args:
            image: (C, X, Y, Z) with Z = 1 for slices, range scaled to [0, 1], its centre at the origin.
            strength: one of :attr:`strengths`.
            random: for everything random; draws the same whatever the strength.

        Returns:
            (C, X, Y, Z) float32.
        """


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """White noise, independent in every voxel and sequence."""

    name = "noise"
    description = "Gaussian noise; its standard deviation as a share of the image's range"
    strengths: Strengths = (0.02, 0.05, 0.1, 0.15, 0.25)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Noise

        return _array(Noise(mean=0.0, std=strength, seed=int(random.integers(2**31)))(image))


@dataclass(frozen=True)
class GaussianBlur(Corruption):
    """A Gaussian filter, the same along all axes."""

    name = "blur"
    description = "Gaussian blur; its standard deviation as a share of the field of view"
    strengths: Strengths = (0.0025, 0.005, 0.01, 0.015, 0.025)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Blur

        return _array(Blur((strength * _field_of_view(image),) * 3)(image))


@dataclass(frozen=True)
class SmoothBiasField(Corruption):
    """The exponential of a random polynomial of third order multiplies the image."""

    name = "bias_field"
    description = "bias field; the largest absolute logarithm of its factor"
    strengths: Strengths = (0.2, 0.4, 0.7, 1.0, 1.5)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import BiasField

        number = sum(1 for x in range(4) for y in range(4 - x) for _ in range(4 - x - y))
        coefficients = random.uniform(-1, 1, number)
        coefficients[0] = 0  # a constant factor is no bias field
        coarse = np.empty((1, *(min(size, 24) for size in image.spatial_shape)))
        largest = np.abs(np.log(BiasField.generate_bias_field(coarse, _BIAS_ORDER, coefficients.tolist()))).max()
        return _array(BiasField((coefficients * strength / largest).tolist(), _BIAS_ORDER)(image))


@dataclass(frozen=True)
class GammaContrast(Corruption):
    """Values to the power of gamma, or of 1 / gamma: darker or brighter, as it is drawn."""

    name = "gamma"
    description = "contrast changed by the power gamma, darker or brighter; the absolute logarithm of gamma"
    strengths: Strengths = (0.2, 0.4, 0.6, 0.8, 1.1)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Gamma

        return _array(Gamma(float(np.exp(strength * random.choice((-1, 1)))))(image))


@dataclass(frozen=True)
class HeadMotion(Corruption):
    """Two movements during the scan; the centre of k-space is of the unmoved head, so that masks still fit."""

    name = "motion"
    description = (
        "two movements of the head by 5 degrees and 2 % of the field of view; the share of k-space out of place"
    )
    strengths: Strengths = (0.5, 0.7, 0.85, 0.93, 0.97)
    degrees: float = 5.0
    shift: float = 0.02

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Motion

        # TorchIO encodes along the last axis: the longest one has lines enough, a slice's third one has a single line
        order = np.argsort(image.spatial_shape, kind="stable")
        array, spacing = image.numpy().transpose(0, *(order + 1)), np.array(image.spacing)[order]
        signs, shifts = random.choice((-1.0, 1.0), (2, 3)), random.uniform(-1, 1, (2, 3))
        if image.is_2d():  # within the plane
            signs[:, 1:] = 0
            shifts[:, 0] = 0
        shifts *= self.shift * _field_of_view(image) / np.linalg.norm(shifts, axis=1, keepdims=True)
        times = np.array((strength / 2, 1 - strength / 2))  # TorchIO fills the lines between with the unmoved head's
        moved = Motion(self.degrees * signs, shifts, times, "linear")(_image(array, spacing.tolist()))
        return _array(moved).transpose(0, *(np.argsort(order) + 1))


@dataclass(frozen=True)
class Ghosts(Corruption):
    """Copies of the head along the phase encoding, as of pulsation: every third to sixth line of k-space is weaker."""

    name = "ghosting"
    description = "ghosts; the share of its signal that every third to sixth line of k-space loses"
    strengths: Strengths = (0.1, 0.2, 0.4, 0.6, 0.9)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Ghosting

        every, axis = int(random.integers(3, 7)), int(random.integers(2))
        return _array(Ghosting(every, axis, strength, None)(image))


@dataclass(frozen=True)
class LowResolution(Corruption):
    """Larger voxels, then linear interpolation back to the original grid; coarser axes stay as they are."""

    name = "downsampling"
    description = "low resolution; voxels across the field of view"
    strengths: Strengths = (128.0, 96.0, 64.0, 48.0, 32.0)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        from torchio import Blur, Resample

        wanted = _field_of_view(image) / strength
        spacing = [
            min(max(wanted, old), old * size) for old, size in zip(image.spacing, image.spatial_shape, strict=True)
        ]
        if np.allclose(spacing, image.spacing):
            return _array(image)
        # TorchIO's own filter against aliasing wants four voxels an axis; its width is this one (Cardoso et al. 2015)
        widths = [
            old * np.sqrt(max((new / old) ** 2 - 1, 0) / (8 * np.log(2)))
            for new, old in zip(spacing, image.spacing, strict=True)
        ]
        x, y, z = spacing
        coarse = Resample((x, y, z))(Blur(tuple(widths))(image))
        return _array(Resample((image.spatial_shape, image.affine))(coarse))


@dataclass(frozen=True)
class MissingSequence(Corruption):
    """One sequence is zero from one end of the field of view on; at severity 5 all of it is missing."""

    name = "missing_sequence"
    description = "one sequence is not there; the share of the field of view that it lacks"
    min_sequences = 2
    strengths: Strengths = (0.2, 0.4, 0.6, 0.8, 1.0)

    def apply(self, image: "ScalarImage", strength: float, random: np.random.Generator) -> np.ndarray:
        """See :meth:`Corruption.apply`."""
        array = _array(image).copy()
        sequence, from_end = int(random.integers(len(array))), bool(random.integers(2))
        lost = np.moveaxis(array[sequence], 1 if image.is_2d() else 2, 0)  # rows of a slice, slices of a volume
        number = round(strength * len(lost))
        lost[len(lost) - number if from_end else 0 : len(lost) if from_end else number] = 0
        return array


CORRUPTIONS: dict[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        *(GaussianNoise(), GaussianBlur(), SmoothBiasField(), GammaContrast()),
        *(HeadMotion(), Ghosts(), LowResolution(), MissingSequence()),
    )
}
"""By name, in the order of tables and plots."""


def applicable(num_sequences: int) -> list[str]:
    """Names of the faults that images of so many sequences can have."""
    return [name for name, corruption in CORRUPTIONS.items() if num_sequences >= corruption.min_sequences]


def corrupt(
    image: np.ndarray,
    spacing: Sequence[float],
    name: str,
    severity: int,
    case: str,
    keep_background: bool = False,
) -> np.ndarray:
    """An image with a fault, the same at every call.

    Args:
        image: (C, [Z,] Y, X), one sequence a channel.
        spacing: of the spatial axes in the same order, in mm or in pixels.
        name: of the fault, see :data:`CORRUPTIONS`.
        severity: 1 to 5.
        case: name of the case; with that of the fault it is the seed of everything random.
        keep_background: voxels that are zero in all sequences stay so, as in images without the skull.

    Returns:
        The shape and type of ``image``; whole numbers are rounded, and what has no negative values gets none.

    Raises:
        ValueError: an unknown fault or severity, not one spacing an axis, or too few sequences.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"{name!r} is no fault of images; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}: there are {SEVERITIES[0]} to {SEVERITIES[-1]}")
    corruption = CORRUPTIONS[name]
    if image.ndim not in (3, 4) or len(spacing) != image.ndim - 1:
        raise ValueError(f"{case}: an image (C, [Z,] Y, X) is needed, with a spacing an axis, not {image.shape}")
    if len(image) < corruption.min_sequences:
        raise ValueError(f"{case}: {name} needs at least {corruption.min_sequences} sequences, not {len(image)}")
    values = image.astype(np.float64)
    axes = tuple(range(1, image.ndim))
    low, high = np.percentile(values, (_LOW, _HIGH), axis=axes, keepdims=True)
    flat = high <= low  # a sequence of hardly anything: its whole range
    low, high = (
        np.where(flat, values.min(axes, keepdims=True), low),
        np.where(flat, values.max(axes, keepdims=True), high),
    )
    scale = np.where(high > low, high - low, 1.0)
    scaled = ((values - low) / scale).astype(np.float32)
    tensor = scaled.transpose(0, *reversed(axes))  # (C, X, Y[, Z])
    if image.ndim == 3:
        tensor = tensor[..., None]
    three = (*reversed(spacing), 1.0)[:3]
    random = np.random.default_rng(list(f"{case}/{name}".encode()))
    faulty = corruption.apply(_image(tensor, three), corruption.strengths[severity - 1], random)
    faulty = faulty[..., 0] if image.ndim == 3 else faulty
    result = faulty.transpose(0, *reversed(axes)) * scale + low
    if keep_background:
        result[:, (image == 0).all(0)] = 0
    return _as_type_of(image, result)


def _as_type_of(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    if image.min() >= 0:  # magnitudes
        values = np.maximum(values, 0)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(image.dtype)


def _image(tensor: np.ndarray, spacing: Sequence[float]) -> "ScalarImage":
    """TorchIO's image of an array (C, X, Y, Z); its centre is the origin, about which TorchIO turns."""
    import torch
    from torchio import ScalarImage

    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = -np.array(spacing) * (np.array(tensor.shape[1:]) - 1) / 2
    return ScalarImage(tensor=torch.from_numpy(np.ascontiguousarray(tensor)), affine=affine)


def _array(image: "ScalarImage") -> np.ndarray:
    return image.numpy().astype(np.float32)


def _field_of_view(image: "ScalarImage") -> float:
    """The longest side, in the unit of the spacing; that of a slice's single voxel does not count."""
    sides = [size * edge for size, edge in zip(image.spatial_shape, image.spacing, strict=True) if size > 1]
    return float(max(sides, default=1.0))
