"""The headers of a series that results are made from: complete, without pixels and private tags, perhaps nameless."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.dicom.series import Series
from braintum.inference.dicom.prediction import stable_uid

_MUST_BE_THERE = (  # may be empty
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_SEXES = ("M", "F", "O", "")

_SAY_NOTHING = (
    *("SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "InstanceNumber", "SeriesNumber"),
    *("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_SAYING_NOTHING_OF_FRAMES = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


def with_plain_headers(series: Series) -> Series:
    """A series whose headers hold what results copy: no private tags, no pixels, nothing missing."""
    return _with(series, _plain)


def pseudonymised(series: Series, pseudonyms: Pseudonyms) -> Series:
    """A series whose headers tell the geometry and nothing else; the same salt gives the same names and UIDs.

    Only what is known to say nothing about the patient stays. UIDs are replaced, so that the archive that holds the
    images cannot be asked who it is.
    """

    def nameless(instance: pydicom.Dataset) -> Dataset:
        kept = Dataset()
        for keyword in _SAY_NOTHING:
            if keyword in instance:
                kept[keyword] = instance[keyword]
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            if keyword in instance:
                setattr(kept, keyword, [_geometry(item) for item in instance[keyword].value])
        for keyword in _UIDS:
            if keyword in instance:
                setattr(kept, keyword, stable_uid(pseudonyms.of("uid", str(instance[keyword].value))))
        kept.PatientID = pseudonyms.of("patient", series.patient_id)
        kept.PatientName = kept.PatientID
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = "braintum: geometry kept, names and UIDs hashed"
        return _plain(kept)

    return _with(series, nameless)


def _with(series: Series, change: Callable[[pydicom.Dataset], Dataset]) -> Series:
    instances = []
    for instance in series.instances:
        changed = change(instance)
        if hasattr(instance, "file_meta"):
            changed.file_meta = instance.file_meta
        instances.append(changed)
    return replace(series, instances=tuple(instances))


def _plain(instance: pydicom.Dataset) -> Dataset:
    kept = Dataset()
    for element in instance:
        if not element.tag.is_private and element.keyword != "PixelData":
            kept.add(element)
    for keyword in _MUST_BE_THERE:
        if keyword not in kept:
            setattr(kept, keyword, "")
    if kept.PatientSex not in _SEXES:
        kept.PatientSex = ""
    return kept


def _geometry(item: Any) -> Dataset:
    kept = Dataset()
    for keyword in _SAYING_NOTHING_OF_FRAMES:
        if keyword in item:
            kept[keyword] = item[keyword]
    return kept
