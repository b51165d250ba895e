"""The mask as DICOM Segmentation, which viewers lay over the images."""

import numpy as np
import pydicom
from highdicom import seg
from highdicom.color import CIELabColor

from braintum.conversion.dicom.series import Series
from braintum.inference.dicom.codes import ANATOMY, CATEGORY, colour, label_code
from braintum.inference.dicom.prediction import DISCLAIMER, PredictedSeries


def segmentation(predicted: PredictedSeries, labelmap: bool = False) -> seg.Segmentation:
    """A segment for each label that is there, numbered from 1, and frames for the slices that are not empty.

    Args:
        predicted: with at least one segment.
        labelmap: the newer Label Map Segmentation, one frame a slice for all segments; many archives refuse it.
    """
    numbers = {value: number for number, value in enumerate(predicted.segments, 1)}
    renumbered = np.zeros(predicted.mask.shape, np.uint8)
    for value, number in numbers.items():
        renumbered[predicted.mask == value] = number
    segments = [
        seg.SegmentDescription(
            segment_number=number,
            segment_label=predicted.segments[value].replace("_", " ")[:64],
            segmented_property_category=CATEGORY,
            segmented_property_type=label_code(predicted.segments[value]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=predicted.algorithm,
            tracking_uid=predicted.uid(f"tracking {value}"),
            tracking_id=tracking_id(predicted, value),
            anatomic_regions=[ANATOMY],
            display_color=CIELabColor.from_rgb(*colour(number - 1)),
        )
        for value, number in numbers.items()
    ]
    dataset = seg.Segmentation(
        source_images=predicted.series.instances,
        pixel_array=as_stored(predicted.series, renumbered),
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=segments,
        content_label="BRAINTUM",
        content_description=DISCLAIMER,
        content_creator_name="braintum^",
        omit_empty_frames=True,
        **predicted.identity("SEG", " labelmap" if labelmap else ""),
    )
    _fix_dimension_uid(dataset, predicted.uid("dimensions"))
    return dataset


def tracking_id(predicted: PredictedSeries, value: int) -> str:
    """By which segment and measurements belong together."""
    return f"braintum {predicted.segments[value].replace('_', ' ')}"[:64]


def as_stored(series: Series, mask: np.ndarray) -> np.ndarray:
    """A mask (Z, Y, X) in the order of the frames in the files, which need not be that of their positions."""
    if len(series.instances) > 1:
        order = [index for index, _ in series.frames]
        num_frames = len(series.instances)
    else:
        order = [number - 1 for _, number in series.frames]
        num_frames = int(series.instances[0].get("NumberOfFrames") or 1)
    stored = np.zeros((num_frames, *mask.shape[1:]), mask.dtype)
    stored[order] = mask
    return stored


def _fix_dimension_uid(dataset: pydicom.Dataset, uid: str) -> None:
    """highdicom draws this one by chance."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
