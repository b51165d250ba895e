"""The outlines as RT Structure Set, for treatment planning systems."""

import datetime

import numpy as np
import pydicom
from highdicom.base import SOPClass
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from braintum.inference.dicom.codes import colour
from braintum.inference.dicom.measurements import outlines
from braintum.inference.dicom.prediction import DISCLAIMER, PredictedSeries


def structure_set(predicted: PredictedSeries) -> pydicom.Dataset:
    """A region of interest for each label that is there.

    Contours run half-way between the pixels inside and those outside, a hole has one of its own: what is within an odd
    number of a region's contours is in the region (``CLOSED_PLANAR``, PS3.3 C.8.8.6.3).
    """
    first = predicted.first_instance
    dataset = SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=first.get("SpecificCharacterSet"),
        **predicted.identity("RTSTRUCT"),
    )
    dataset.copy_patient_and_study_information(first)
    frame_of_reference = predicted.series.frame_of_reference
    now = datetime.datetime.now()
    dataset.StructureSetLabel = "BRAINTUM"
    dataset.StructureSetDescription = DISCLAIMER
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.OperatorsName = None
    dataset.PositionReferenceIndicator = None
    dataset.FrameOfReferenceUID = frame_of_reference
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_images(predicted)]
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    for number, (value, name) in enumerate(predicted.segments.items(), 1):
        region = Dataset()
        region.ROINumber = number
        region.ReferencedFrameOfReferenceUID = frame_of_reference
        region.ROIName = name.replace("_", " ")[:64]
        region.ROIDescription = DISCLAIMER
        region.ROIGenerationAlgorithm = "AUTOMATIC"
        dataset.StructureSetROISequence.append(region)
        contours = Dataset()
        contours.ROIDisplayColor = list(colour(number - 1))
        contours.ReferencedROINumber = number
        contours.ContourSequence = _contours(predicted, predicted.mask == value)
        dataset.ROIContourSequence.append(contours)
        observation = Dataset()
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType = None
        observation.ROIInterpreter = None
        dataset.RTROIObservationsSequence.append(observation)
    return dataset


def _referenced_images(predicted: PredictedSeries) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = predicted.series.series_uid
    series.ContourImageSequence = [_reference(instance, None) for instance in predicted.series.instances]
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # retired, and required here
    study.ReferencedSOPInstanceUID = predicted.series.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = predicted.series.frame_of_reference
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(instance: Dataset, frame: int | None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = instance.SOPClassUID
    reference.ReferencedSOPInstanceUID = instance.SOPInstanceUID
    if frame is not None and "NumberOfFrames" in instance:
        reference.ReferencedFrameNumber = frame
    return reference


def _contours(predicted: PredictedSeries, mask: np.ndarray) -> list[Dataset]:
    image, found = predicted.series.image, []
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    to_patient = np.reshape(image.GetDirection(), (3, 3)) * spacing
    for index in np.flatnonzero(mask.any((1, 2))):
        instance, frame = predicted.series.frames[index]
        for outline in outlines(mask[index]):
            voxels = np.column_stack([outline[:-1, ::-1], np.full(len(outline) - 1, index)])
            contour = Dataset()
            contour.ContourImageSequence = [_reference(predicted.series.instances[instance], frame)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(voxels)
            contour.ContourData = [f"{mm:.4f}" for mm in (voxels @ to_patient.T + origin).ravel()]
            found.append(contour)
    return found
