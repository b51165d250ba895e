"""Two models that predict the same images, one the masks and one the classes: what they have to have in common."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import channel_name_to_normalization_mapping

from braintum.inference.models.segmentation_predictor import SegmentationPredictor

NORMALIZATION_NAMES = {
    *channel_name_to_normalization_mapping,
    "percentile_zscore",
    "clahe_zscore",
    "percentile_rescale_to_0_1",
}
"""Channel names that choose a normalisation and so do not say which sequence the channel is."""

_NOT_OF_PREPROCESSING = {
    *("architecture", "batch_dice", "batch_size", "data_identifier", "median_image_size_in_voxels", "patch_size"),
}
_PLANS_OF_PREPROCESSING = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


def check_same_input(segmentation: SegmentationPredictor, classes: SegmentationPredictor) -> None:
    """Make sure that one folder of images is input to both models.

    Channels are compared by name, without regard to case: two models may take as many channels, but in another order.

    Args:
        segmentation: predicts the masks.
        classes: predicts the classes.

    Raises:
        ValueError: file endings or channels differ.
    """
    models = f"the segmentation model {_name(segmentation)} and the class model {_name(classes)}"
    endings = [predictor.dataset_json["file_ending"] for predictor in (segmentation, classes)]
    if endings[0] != endings[1]:
        raise ValueError(
            f"{models} read different files, *{endings[0]} and *{endings[1]}; train one of them on the other's files"
        )
    channels = [_channels(predictor.dataset_json) for predictor in (segmentation, classes)]
    if len(channels[0]) != len(channels[1]):
        raise ValueError(
            f"{models} take different channels, {_listed(channels[0])} and {_listed(channels[1])}; train one of them "
            "on the other's channels"
        )
    if any(
        first != second and not NORMALIZATION_NAMES & {first, second}
        for first, second in zip(*([name.casefold() for name in names] for names in channels), strict=True)
    ):
        raise ValueError(
            f"{models} call their channels differently, {_listed(channels[0])} and {_listed(channels[1])}; if the "
            "sequences are the same in the same order, write the same channel_names into both models' dataset.json"
        )


def preprocessed_alike(first: SegmentationPredictor, second: SegmentationPredictor) -> bool:
    """Whether the plans of two models turn an image into the same array, so that once is enough."""
    return _preprocessing(first) == _preprocessing(second)


def _preprocessing(predictor: SegmentationPredictor) -> tuple[Mapping[str, Any], list[Any]]:
    configuration = predictor.configuration_manager.configuration
    plans = predictor.plans_manager.plans
    return (
        {key: value for key, value in configuration.items() if key not in _NOT_OF_PREPROCESSING},
        [plans[key] for key in _PLANS_OF_PREPROCESSING],
    )


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the channels in order; nnU-Net reads ``modality`` too."""
    names = dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"]
    return [str(names[number]) for number in sorted(names, key=int)]


def _listed(channels: list[str]) -> str:
    return "[" + ", ".join(channels) + "]"


def _name(predictor: SegmentationPredictor) -> str:
    return str(predictor.model_folder or predictor.trainer_name)
