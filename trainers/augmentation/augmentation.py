"""Augmentation as data, made of batchgeneratorsv2's transforms.

The order is that of nnU-Net's ``get_training_transforms``: space, intensities, flips. What follows there in any case
(mask of the normalisation, ignore label, regions, targets of deep supervision) is not augmentation and not done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, ceil, cos, radians, sin

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


@dataclass(frozen=True)
class Augmentation:
    """What happens to every training patch; nothing by default. Each amount is drawn anew for each patch.

    The papers name amounts but, flips aside, no probabilities: here everything is applied always, uniformly drawn.

    Attributes:
        rotation_degrees: angle, to either side, about each axis.
        scaling: range of the factor on lengths.
        isotropic_scaling: one factor for all axes; otherwise one each, which is a mild affine distortion.
        spatial_probability: with which a patch is rotated, and with which it is scaled.
        crop_margin: the patch is cropped at random from one that is larger by this share. Beyond the image lie
            nnU-Net's zeros.
        flips: along each axis with probability 0.5. Without them, prediction mirrors nothing either.
        flips_last_axis_only: left-right in the papers' slices, where up and down are never mistaken.
        noise_sigma: standard deviation of Gaussian noise.
        brightness_sigma: standard deviation of what is added to each channel.
        brightness: range of a factor on the intensities of each channel.
        contrast: range of a factor on their distance from the mean; they stay in the patch's range.
        gamma: range of the exponent for each channel, whose mean and standard deviation are kept.
        low_resolution: range of the scale of a smaller image that a quarter of the patches, as in nnU-Net, is
            interpolated from.
    """

    rotation_degrees: float = 0.0
    scaling: tuple[float, float] = (1.0, 1.0)
    isotropic_scaling: bool = True
    spatial_probability: float = 1.0
    crop_margin: float = 0.0
    flips: bool = False
    flips_last_axis_only: bool = False
    noise_sigma: float = 0.0
    brightness_sigma: float = 0.0
    brightness: tuple[float, float] | None = None
    contrast: tuple[float, float] | None = None
    gamma: tuple[float, float] | None = None
    low_resolution: tuple[float, float] | None = None

    @property
    def rotation(self) -> tuple[float, float]:
        """Range of the angle in radians."""
        limit = radians(self.rotation_degrees)
        return -limit, limit

    def initial_patch_size(self, patch_size: Sequence[int], in_plane_only: bool) -> list[int]:
        """What to cut from the image so that rotation, scaling and cropping find data at the patch's corners.

        As nnU-Net's ``get_patch_size`` means to: it forgets the first axis of a 2-D patch, and of three rotations about
        different axes the largest counts.

        Args:
            patch_size: ([Z,] Y, X).
            in_plane_only: of a 3-D patch, leave the first axis alone.
        """
        if in_plane_only:
            return [patch_size[0], *self.initial_patch_size(patch_size[1:], in_plane_only=False)]
        angle = radians(self.rotation_degrees)
        rotated = [
            max(_rotated_extent(edge, other, angle) for j, other in enumerate(patch_size) if j != i)
            for i, edge in enumerate(patch_size)
        ]
        return [
            ceil(extent / self.scaling[0] - 1e-6) + ceil(self.crop_margin * edge)
            for extent, edge in zip(rotated, patch_size, strict=True)
        ]

    def transforms(
        self, patch_size: Sequence[int], mirror_axes: Sequence[int] | None, in_plane_only: bool
    ) -> list[BasicTransform]:
        """The transforms, from a patch of :meth:`initial_patch_size` to one of ``patch_size``.

        Args:
            patch_size: ([Z,] Y, X).
            mirror_axes: axes to flip, None for none.
            in_plane_only: rotate, scale and crop a 3-D patch within the plane of its last two axes.
        """
        transforms: list[BasicTransform] = [self._spatial(patch_size[1:] if in_plane_only else patch_size)]
        if in_plane_only:
            transforms = [Convert3DTo2DTransform(), *transforms, Convert2DTo3DTransform()]
        if self.noise_sigma:
            transforms.append(GaussianNoiseTransform(self.noise_sigma))  # it takes a standard deviation
        if self.brightness_sigma:
            transforms.append(BrightnessAdditiveTransform(0.0, self.brightness_sigma, synchronize_channels=False))
        if self.brightness is not None:
            transforms.append(MultiplicativeBrightnessTransform(self.brightness, synchronize_channels=False))
        if self.contrast is not None:
            transforms.append(ContrastTransform(self.contrast, preserve_range=True, synchronize_channels=False))
        if self.gamma is not None:
            transforms.append(
                GammaTransform(
                    self.gamma, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
                )
            )
        if self.low_resolution is not None:
            simulated = SimulateLowResolutionTransform(
                self.low_resolution,
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=None,
                allowed_channels=None,
                p_per_channel=1,
            )
            transforms.append(RandomTransform(simulated, apply_probability=0.25))
        if mirror_axes:
            transforms.append(MirrorTransform(tuple(mirror_axes)))
        return transforms

    def _spatial(self, patch_size: Sequence[int]) -> SpatialTransform:
        initial = self.initial_patch_size(patch_size, in_plane_only=False)
        return SpatialTransform(
            tuple(patch_size),
            # the centre moves by half the margin to either side
            patch_center_dist_from_border=[
                (edge - self.crop_margin * final) / 2 for edge, final in zip(initial, patch_size, strict=True)
            ],
            random_crop=self.crop_margin > 0,
            p_rotation=self.spatial_probability if self.rotation_degrees else 0,
            rotation=self.rotation,
            p_scaling=0 if self.scaling == (1.0, 1.0) else self.spatial_probability,
            scaling=(1 / self.scaling[1], 1 / self.scaling[0]),  # it takes the factor on the grid
            p_synchronize_scaling_across_axes=1 if self.isotropic_scaling else 0,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )


def _rotated_extent(edge: int, other: int, largest_angle: float) -> float:
    """Extent along an axis of a rectangle, rotated by any angle up to the largest one."""
    angle = min(largest_angle, atan2(other, edge))  # there it is as long as the diagonal
    return edge * cos(angle) + other * sin(angle)
