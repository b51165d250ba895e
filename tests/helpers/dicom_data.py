"""DICOM series as scanners write them, with every quirk that a test asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.2, -0.3, 0.4).GetMatrix())
"""Direction cosines, row by row, of a grid that is turned about all axes."""
STUDY = "1.2.826.0.1.3680043.2.1125.77"


def uid(*what: object) -> UID:
    """An identifier, the same for the same words."""
    return generate_uid(entropy_srcs=[str(word) for word in what])


def grid(
    array: np.ndarray,
    spacing: Sequence[float] = (0.7, 0.9, 2.5),
    origin: Sequence[float] = (-31.5, 40.25, -7.0),
    direction: Sequence[float] = OBLIQUE,
) -> sitk.Image:
    """An image of an array (Z, Y, X) with a geometry that is not trivial."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _dataset(kind: UID, instance: UID, tags: Mapping[str, Any]) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    series = str(tags.get("SeriesDescription", ""))
    defaults = {
        "PatientID": "17", "PatientName": "Doe^Jane", "Modality": "MR", "StudyInstanceUID": STUDY,
        "StudyDate": "20200102", "SeriesInstanceUID": uid(STUDY, series), "FrameOfReferenceUID": uid(STUDY, "frame"),
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "ImageType": ["ORIGINAL", "PRIMARY"],
    }  # fmt: skip
    for name, value in {**defaults, **tags}.items():
        setattr(dataset, name, value)
    return dataset


def _set_pixels(dataset: pydicom.Dataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = dataset.get("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def _axes(image: sitk.Image) -> tuple[list[float], list[float], np.ndarray]:
    """Orientation, pixel spacing, and the way from one slice to the next, as DICOM has them."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    x, y, z = image.GetSpacing()
    return [round(float(v), 9) for v in (*axes[:, 0], *axes[:, 1])], [y, x], axes[:, 2] * z


def write_series(
    folder: Path,
    image: sitk.Image,
    tags: Mapping[str, Any] | None = None,
    per_slice: Mapping[int, Mapping[str, Any]] | None = None,
    without: Sequence[int] = (),
    prefix: str = "IM",
    shift: Sequence[float] = (0, 0, 0),
    first_number: int = 1,
) -> list[Path]:
    """Writes a series of single-frame MR images, whose names and numbers are not in the order of their positions.

    Args:
        folder: is made.
        image: any geometry; of a left-handed one the slices then lie in the order against the normal.
        tags: of all slices.
        per_slice: number of a slice -> tags of its own.
        without: slices that are not written.
        prefix: of the file names, which have no ending.
        shift: of each slice against the one before, in mm.
        first_number: of the instances.

    Returns:
        The file of each slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    orientation, pixel_spacing, step = _axes(image)
    array, origin = sitk.GetArrayFromImage(image), np.array(image.GetOrigin())
    series = (tags or {}).get("SeriesDescription", "")
    files = []
    for number, pixels in enumerate(array):
        order = _shuffled(len(array))[number]
        own = {**(tags or {}), **((per_slice or {}).get(number, {}))}
        dataset = _dataset(MRImageStorage, uid(series, prefix, number), own)
        dataset.InstanceNumber = first_number + order
        dataset.ImageOrientationPatient = orientation
        dataset.PixelSpacing = pixel_spacing
        dataset.SliceThickness = float(np.linalg.norm(step))
        position = origin + number * (step + shift)
        if "ImagePositionPatient" not in own:
            dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        _set_pixels(dataset, pixels)
        files.append(folder / f"{prefix}{order:04d}")
        if number not in without:
            dataset.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(
    file: Path,
    images: Sequence[sitk.Image],
    tags: Mapping[str, Any] | None = None,
    per_image: Sequence[Mapping[str, Any]] = (),
    rescale: Sequence[tuple[float, float]] = (),
    without: Sequence[int] = (),
) -> Path:
    """Writes an enhanced multi-frame MR object, whose frames are not in the order of their positions.

    Args:
        file: to write.
        images: volumes on one grid: echoes, time points.
        tags: of the object.
        per_image: `EchoTime` (ms) and `TemporalPositionIndex` of each volume.
        rescale: slope and intercept of each slice; the same in all volumes.
        without: slices that are left out.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset = _dataset(EnhancedMRImageStorage, uid(file.name), tags or {})
    orientation, pixel_spacing, step = _axes(images[0])
    frames, groups = [], []
    count = images[0].GetSize()[2]
    for number, image in enumerate(images):
        array = sitk.GetArrayFromImage(image)
        for index in (
            order for order in np.argsort([(7 * i + 3) % count for i in range(count)]) if order not in without
        ):
            group = pydicom.Dataset()
            position = np.array(image.GetOrigin()) + index * step
            group.PlanePositionSequence = [_item(ImagePositionPatient=[round(float(v), 6) for v in position])]
            group.PixelValueTransformationSequence = [_item(
                RescaleSlope=rescale[index][0] if rescale else 1,
                RescaleIntercept=rescale[index][1] if rescale else 0,
                RescaleType="US",
            )]  # fmt: skip
            facts = per_image[number] if per_image else {}
            if "EchoTime" in facts:
                group.MREchoSequence = [_item(EffectiveEchoTime=facts["EchoTime"])]
            if "TemporalPositionIndex" in facts:
                group.FrameContentSequence = [_item(TemporalPositionIndex=facts["TemporalPositionIndex"])]
            groups.append(group)
            frames.append(array[index])
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=orientation)]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=pixel_spacing, SliceThickness=float(np.linalg.norm(step)))]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(frames)
    _set_pixels(dataset, np.stack(frames))
    dataset.save_as(file, enforce_file_format=True)
    return file


def _shuffled(count: int) -> list[int]:
    return [*range(1, count, 2), *range(0, count, 2)]


def _item(**values: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def write_structures(file: Path, image: sitk.Image, contours: Mapping[int, Sequence[tuple[int, Sequence]]]) -> Path:
    """Writes a structure set: number of the region -> (slice, corners as (column, row)) of each contour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tags = {"Modality": "RTSTRUCT", "SeriesDescription": "contours"}
    dataset = _dataset(UID("1.2.840.10008.5.1.4.1.1.481.3"), uid(file), tags)
    dataset.ROIContourSequence = []
    for number, drawn in contours.items():
        items = []
        for z, corners in drawn:
            points = [image.TransformContinuousIndexToPhysicalPoint((x, y, z)) for x, y in corners]
            data = [round(value, 4) for point in points for value in point]
            items.append(
                _item(ContourGeometricType="CLOSED_PLANAR", ContourData=data, NumberOfContourPoints=len(points))
            )
        dataset.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=items))
    dataset.save_as(file, enforce_file_format=True)
    return file
