"""The normalisation of a channel: what asks for a scheme, in which order, and the reason that the plans give."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.preprocessing.normalization import default_normalization_schemes

from braintum.planner.planning.presets import PlannerPreset
from braintum.planner.preprocessing import normalization


def channel_scheme(
    preset: PlannerPreset, name: str, fingerprint: Mapping[str, Any] | None, of_rescaled_volumes: bool = False
) -> tuple[str, str]:
    """Scheme of a channel: by its name in ``dataset.json``, as the paper has it, or as the fingerprint suggests.

    Args:
        preset: may have the scheme of a paper.
        name: of the channel.
        fingerprint: what is known of the channel; None with nnU-Net's own fingerprint.
        of_rescaled_volumes: the images are slices of volumes that were rescaled to [0, 1].

    Returns:
        Name of the scheme, and the reason.
    """
    asked_for = normalization.SCHEME_OF_CHANNEL_NAME.get(name.casefold())
    rescales = preset.normalization in (None, default_normalization_schemes.RescaleTo01Normalization)
    if of_rescaled_volumes and rescales and asked_for is None:
        return normalization.VolumeRescaleTo01Normalization.__name__, (
            "as the volumes were rescaled before they were sliced, which their slices keep"
        )
    if preset.normalization is not None and asked_for is None:
        return preset.normalization.__name__, f"as {preset.paper} has it"
    if fingerprint is not None:
        return normalization.choose_normalization(fingerprint, name)
    return (asked_for or default_normalization_schemes.ZScoreNormalization).__name__, (
        "by the channel's name alone, as nnU-Net's fingerprint tells too little of the intensities; extract it with "
        "-fpe BrainTumFingerprintExtractor"
    )


def keeps_background_at_zero(scheme: str) -> bool:
    """Whether a normalisation scheme takes a mask, and leaves what is outside of it at zero."""
    found = getattr(normalization, scheme, None) or getattr(default_normalization_schemes, scheme)
    return found.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true
