"""Intensity normalisation of the papers, as schemes that plans name, and which one suits a channel."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    ImageNormalization,
    RescaleTo01Normalization,
)
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import channel_name_to_normalization_mapping
from skimage.exposure import equalize_adapthist

__all__ = [
    "CLAHEZScoreNormalization",
    "PercentileRescaleTo01Normalization",
    "PercentileZScoreNormalization",
    "VolumeRescaleTo01Normalization",
    "choose_normalization",
]


class PercentileZScoreNormalization(ImageNormalization):
    """Clip to the 0.5th and 99.5th percentile of the non-zero voxels, then z-score with their mean and deviation.

    The normalisation of ResSE-LKA-UNet (paper 002, section 3.2), per modality. Voxels that are exactly zero, the
    background of skull-stripped images, stay zero where the plan uses the mask and are normalised with the rest where
    it does not. A channel without any non-zero voxel (a missing sequence) or with only one intensity becomes zero.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = True
    percentiles = (0.5, 99.5)

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel.

        Args:
            image: (Z, Y, X).
            seg: (Z, Y, X), negative outside the non-zero region; only read where ``use_mask_for_norm`` is set.

        Returns:
            (Z, Y, X) of ``target_dtype``.
        """
        image = image.astype(self.target_dtype, copy=False)
        nonzero = image != 0
        if not nonzero.any():
            return np.zeros_like(image)
        low, high = np.percentile(image[nonzero], self.percentiles).astype(self.target_dtype)
        if low == high:
            return np.zeros_like(image)
        image = self._enhance_contrast(np.clip(image, low, high), low, high)
        # in double precision, where the mean of equal values is exactly that value
        mean, deviation = image[nonzero].mean(dtype=np.float64), image[nonzero].std(dtype=np.float64)
        normalised = ((image - mean) / max(deviation, 1e-8)).astype(self.target_dtype, copy=False)
        if self.use_mask_for_norm and seg is not None:
            normalised[seg < 0] = 0
        return normalised

    def _enhance_contrast(self, image: np.ndarray, low: np.floating, high: np.floating) -> np.ndarray:
        """Change a clipped channel, whose values reach from ``low`` to ``high``, before the z-score."""
        return image


class CLAHEZScoreNormalization(PercentileZScoreNormalization):
    """Percentile clipping, contrast-limited adaptive histogram equalisation (CLAHE) of every slice, z-score.

    Paper 002, section 3.2: clip limit 2.0, a grid of 8 × 8 tiles, slice by slice, all modalities. The paper applies
    CLAHE after the z-score and says nothing of the range of its result. CLAHE sees no difference between a slice and a
    rescaled one, so a z-score before it has no effect; settled here: it comes afterwards, and the network gets
    standardised intensities.

    The paper's numbers are those of OpenCV, where the clip limit counts in multiples of a tile's mean histogram bin.
    scikit-image's counts in shares of the tile's pixels: 2.0 with 256 bins is 2.0 / 256. Slices are those of the first
    axis, each stretched to its own range; a slice of one intensity is left alone.
    """

    clip_limit = 2.0
    tiles_per_axis = 8
    bins = 256

    def _enhance_contrast(self, image: np.ndarray, low: np.floating, high: np.floating) -> np.ndarray:
        tile = [-(-edge // self.tiles_per_axis) for edge in image.shape[1:]]  # rounded up, as OpenCV's
        return np.stack([self._equalise(one_slice, tile) for one_slice in (image - low) / (high - low)])

    def _equalise(self, one_slice: np.ndarray, tile: list[int]) -> np.ndarray:
        """CLAHE of one slice, (Y, X) in [0, 1]."""
        if one_slice.min() == one_slice.max():
            return one_slice
        return equalize_adapthist(one_slice, kernel_size=tile, clip_limit=self.clip_limit / self.bins, nbins=self.bins)


class PercentileRescaleTo01Normalization(ImageNormalization):
    """From the 0.5th and 99.5th percentile of the image to [0, 1], clipped: black stays black.

    A 16-bit original, an 8-bit export and its recompressed copy come out alike, where nnU-Net's rescaling follows a
    single bright pixel. An image of one intensity becomes zero.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False
    percentiles = (0.5, 99.5)

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel, (Z, Y, X); the segmentation is not read."""
        image = image.astype(self.target_dtype, copy=False)
        low, high = np.percentile(image, self.percentiles).astype(self.target_dtype)
        if low == high:
            return np.zeros_like(image)
        return np.clip((image - low) / (high - low), 0, 1)


class VolumeRescaleTo01Normalization(RescaleTo01Normalization):
    """Min-max to [0, 1] of what is not within [0, 1] already, as slices of a rescaled volume are.

    Papers 000 and 001 rescale a volume before it is sliced. nnU-Net's scheme would stretch each slice to the whole
    range again. Images of other values are rescaled by themselves.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalise one channel, (Z, Y, X); the segmentation is not read."""
        if image.min() >= 0 and image.max() <= 1:
            return image.astype(self.target_dtype, copy=False)
        return super().run(image, seg)


SCHEME_OF_CHANNEL_NAME: dict[str, type[ImageNormalization]] = {
    **channel_name_to_normalization_mapping,
    "percentile_zscore": PercentileZScoreNormalization,
    "clahe_zscore": CLAHEZScoreNormalization,
    "percentile_rescale_to_0_1": PercentileRescaleTo01Normalization,
}
"""Channel names in ``dataset.json`` with which the user chooses; nnU-Net's own and ours."""


def choose_normalization(channel: Mapping[str, Any], channel_name: str) -> tuple[str, str]:
    """Scheme that suits a channel, from its fingerprint.

    A channel name that stands for a scheme (nnU-Net's ``zscore``, ``rescale_to_0_1``, ``nonorm``, …; ours
    ``percentile_zscore`` and ``clahe_zscore``) decides. Otherwise 8-bit exports are rescaled to [0, 1], as papers 000
    and 001 do, and everything else gets paper 002's percentile clipping and z-score. Rescaling is nnU-Net's, from each
    image's own smallest to its own largest value: grey values of MRI have no unit, and a model trained on 8-bit exports
    then takes the 16-bit originals of the same images as well.

    Whether the z-score leaves the background at zero (``use_mask_for_norm``) stays nnU-Net's decision: it does where
    cropping to the non-zero region removes more than a quarter of the median image, that is, in skull-stripped data.

    Args:
        channel: ``integer`` (all values are whole numbers), ``minimum``, ``maximum`` and ``skull_stripped`` are read.
        channel_name: from ``dataset.json``.

    Returns:
        Name of the scheme, and the reason in one sentence.
    """
    chosen = SCHEME_OF_CHANNEL_NAME.get(channel_name.casefold())
    if chosen is not None:
        return chosen.__name__, f'the channel name "{channel_name}" in dataset.json asks for it'
    low, high = channel["minimum"], channel["maximum"]
    if channel["integer"] and low >= 0 and high <= 255:
        return (
            RescaleTo01Normalization.__name__,
            f"whole numbers from {low:g} to {high:g} are an 8-bit export, windowed already: rescaled to [0, 1]",
        )
    values = "whole numbers" if channel["integer"] else "fractions"
    background = "skull-stripped" if channel["skull_stripped"] else "with skull or background noise"
    return (
        PercentileZScoreNormalization.__name__,
        f"{values} from {low:g} to {high:g}, {background}: MRI intensities have no common scale and a few very bright "
        "voxels, so they are clipped and standardised with the non-zero voxels of each image",
    )
