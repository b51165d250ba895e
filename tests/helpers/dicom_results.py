"""Predictions on DICOM series, and an archive to send them to."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from dicom_data import write_series

from braintum.conversion.dicom.series import Series
from braintum.conversion.dicom.study import find_series

HEADER = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": "Müller^Jörg",
    "PatientID": "P77",
    "PatientBirthDate": "19500102",
    "PatientSex": "M",
    "StudyTime": "101112",
    "StudyID": "7",
    "StudyDescription": "MR head",
    "AccessionNumber": "A77",
    "ReferringPhysicianName": "Doe^Ann",
    "SeriesDescription": "t1 mprage km",
    "ContrastBolusAgent": "Gadobutrol",
    "BodyPartExamined": "BRAIN",
    "PatientPosition": "HFS",
    "Manufacturer": "Maker",
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "EchoTime": 12,
    "RepetitionTime": 600,
    "EchoTrainLength": 1,
    "PositionReferenceIndicator": "",
    "SeriesNumber": 5,
}
"""Of an image after contrast agent, with all that its kind of object asks for."""

BRATS = {"labels": {"background": 0, "whole_tumour": [1, 2, 3], "tumour_core": [1, 3], "enhancing_tumour": [3]}}
RESULT = {
    "case": "case",
    "predicted_class": "glioma",
    "confidence": 0.8,
    "probabilities": {"glioma": 0.8, "meningioma": 0.15, "no_tumor": 0.05},
    "tumour_volume": 100.0,
    "volume_unit": "mm3",
}


def series_of(folder: Path, image: sitk.Image, **tags: object) -> Series:
    """Writes an image as a series, and reads it."""
    write_series(folder, image, {**HEADER, **tags})
    (found,) = find_series(folder).series
    return found.read()


def on_grid_of(mask: sitk.Image, series: Series) -> np.ndarray:
    """A mask, whose voxels are those of the series in another order, as (Z, Y, X) of the series."""
    return sitk.GetArrayFromImage(sitk.Resample(mask, series.image, sitk.Transform(), sitk.sitkNearestNeighbor))
