"""What a model found in a DICOM series, as DICOM objects that an archive takes."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.dicom.frames import readable
from braintum.conversion.dicom.series import Series
from braintum.conversion.files.atomic import atomic_files
from braintum.inference.dicom.contours import structure_set
from braintum.inference.dicom.headers import pseudonymised, with_plain_headers
from braintum.inference.dicom.kinds import DEFAULT_KINDS, KINDS
from braintum.inference.dicom.pictures import secondary_capture
from braintum.inference.dicom.prediction import PredictedSeries, UsedModel
from braintum.inference.dicom.report import structured_report
from braintum.inference.dicom.segmentation import segmentation

__all__ = ["DEFAULT_KINDS", "KINDS", "UsedModel", "write_objects"]


def write_objects(
    series: Series,
    mask: np.ndarray,
    result: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    dataset_json: Mapping[str, Any],
    model: UsedModel,
    others: Sequence[str] = (),
    kinds: Collection[str] = DEFAULT_KINDS,
    labelmap: bool = False,
    pseudonyms: Pseudonyms | None = None,
) -> list[Path]:
    """Write the objects of a prediction as ``seg.dcm``, ``sr.dcm``, ``sc.dcm`` and ``rtstruct.dcm``.

    Their UIDs are the same for the same images, model and result. Patient and study are those of the images; private
    tags are not copied. Where the mask is empty, there is neither a segmentation nor a structure set.

    Args:
        series: that the mask lies on.
        mask: (Z, Y, X) on the grid of ``series.image``, values of ``dataset_json``.
        result: what ``classes/<case>.json`` holds.
        output: folder, which exists.
        dataset_json: of the model.
        model: that predicted.
        others: SOPInstanceUID of the images of further channels.
        kinds: of :data:`braintum.inference.dicom.kinds.KINDS`.
        labelmap: a Label Map Segmentation in place of a binary one.
        pseudonyms: to go by in place of the patient's and study's identity; None for these themselves.

    Returns:
        The files that were written.

    Raises:
        ValueError: an unknown kind, a mask that does not fit the series, a series without a frame of
            reference, or headers that no object can be made of.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kind of object: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if not series.frame_of_reference:
        raise ValueError(f"the series {series.description!r} has no FrameOfReferenceUID; export it again")
    prepared = with_plain_headers(series) if pseudonyms is None else pseudonymised(series, pseudonyms)
    if pseudonyms is not None:
        others = [pseudonyms.of("uid", uid) for uid in others]
    predicted = PredictedSeries(prepared, mask, dataset_json, result, model, others)
    objects: dict[str, pydicom.Dataset] = {}
    with readable(Path(series.description)):
        if "seg" in kinds and predicted.segments:
            objects["seg"] = segmentation(predicted, labelmap)
        if "sr" in kinds:
            objects["sr"] = structured_report(predicted, objects.get("seg"))
        if "sc" in kinds:
            objects["sc"] = secondary_capture(predicted)
        if "rtstruct" in kinds and predicted.segments:
            objects["rtstruct"] = structure_set(predicted)
    with atomic_files(output, durable=True) as partial:
        for kind, dataset in objects.items():
            dataset.save_as(partial / f"{kind}.dcm", enforce_file_format=True)
    return [Path(output) / f"{kind}.dcm" for kind in objects]
