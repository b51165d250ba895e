"""Intensity normalisation of the papers, as schemes that plans name."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

__all__ = ["PercentileZScoreNormalization"]


class PercentileZScoreNormalization(ImageNormalization):
    """Clip to the 0.5th and 99.5th percentile of the non-zero voxels, then z-score with their mean and deviation.

    The normalisation of ResSE-LKA-UNet (paper 002, section 2.1), per modality. Voxels that are exactly zero, the
    background of skull-stripped images, stay zero where the plan uses the mask and are normalised with the rest where
    it does not. A channel without any non-zero voxel (a missing sequence) becomes zero.
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
        low, high = np.percentile(image[nonzero], self.percentiles)
        clipped = np.clip(image, low, high)
        mean, deviation = clipped[nonzero].mean(), clipped[nonzero].std()
        normalised = (clipped - mean) / max(deviation, 1e-8)
        if self.use_mask_for_norm and seg is not None:
            normalised[seg < 0] = 0
        return normalised.astype(self.target_dtype, copy=False)
