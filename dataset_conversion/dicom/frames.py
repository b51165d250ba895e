"""Headers of DICOM files as plain values, one record a frame: an image of a single-frame object, or of an enhanced one.

In an enhanced object what belongs to a frame lies in its functional groups, or in the shared ones; both are flattened
here, under the names that single-frame objects have for the same.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from braintum.conversion.files.file_checks import MAX_BYTES, one_line
from braintum.conversion.files.volumes import VolumeError

Place = Path | zipfile.Path
"""A file, or one in a ZIP archive."""

_ENHANCED_NAMES = {
    "EffectiveEchoTime": "EchoTime",
    "FrameType": "ImageType",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "InversionTimes": "InversionTime",
    "ContrastBolusAgentSequence": "ContrastBolusAgent",
}
"""Name in functional groups -> name of the same in single-frame objects."""

_KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *("PatientID", "StudyDate", "StudyTime", "StudyDescription", "Modality", "BodyPartExamined"),
    *("SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName"),
    *("ScanningSequence", "SequenceVariant", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle"),
    *("EchoTrainLength", "ImageType", "AcquisitionContrast", "ContrastBolusAgent", "DiffusionBValue"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime", "AcquisitionDateTime"),
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PhotometricInterpretation"),
    *("RescaleSlope", "RescaleIntercept", "BitsStored", "HighBit", "PixelRepresentation"),
)
_GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""How many numbers each has."""
_NUMBERS = ("DS", "IS", "FD", "FL", "US", "SS", "UL", "SL")
_NAMES = {tag_for_keyword(name): _ENHANCED_NAMES.get(name, name) for name in (*_KEPT, *_ENHANCED_NAMES)}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice of a volume.

    Attributes:
        file: that holds it.
        number: within the file, from 1.
        facts: the header's values by DICOM keyword, those of its functional groups included.
    """

    file: Place
    number: int
    facts: Mapping[str, Any]

    @property
    def position(self) -> tuple[float, ...]:
        """Of the centre of the first pixel, in mm, LPS."""
        return self.facts["ImagePositionPatient"]

    @property
    def orientation(self) -> tuple[float, ...]:
        """Direction cosines of a row and of a column."""
        return self.facts["ImageOrientationPatient"]


@contextmanager
def readable(file: Place) -> Iterator[None]:
    """Turns whatever is raised for a file into a `VolumeError` that names it; warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of values that bend the standard: scanners write many
            yield
    except VolumeError:
        raise
    except OSError as error:
        raise VolumeError(f"{file}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # pydicom and the decoders raise errors of many types for corrupt files
        raise VolumeError(f"{file}: damaged, or no DICOM ({one_line(error)[:200]}); export it again") from error


def read_dataset(file: Place, with_pixels: bool = True) -> pydicom.Dataset:
    """Reads a DICOM file, also one without the usual beginning.

    Raises:
        VolumeError: it is damaged, or no DICOM file.
    """
    with readable(file), file.open("rb") as stream:
        content = io.BytesIO(stream.read(MAX_BYTES)) if with_pixels or isinstance(file, zipfile.Path) else stream
        dataset = pydicom.dcmread(content, stop_before_pixels=not with_pixels, force=True)
        if "SOPClassUID" not in dataset:
            raise ValueError("no SOP class")
        if "TransferSyntaxUID" not in dataset.file_meta:
            is_implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        return dataset


def frames_of(file: Place, header: pydicom.Dataset) -> list[Frame]:
    """Lists the frames of an image object.

    Raises:
        VolumeError: it is damaged.
    """
    with readable(file):
        common = _plain(header)
        if "PerFrameFunctionalGroupsSequence" not in header:
            if (number := int(header.get("NumberOfFrames") or 1)) != 1:
                raise VolumeError(f"{file}: {number} frames without positions of their own; export original images")
            return [Frame(file, 1, common)]
        for group in header.get("SharedFunctionalGroupsSequence") or ():
            common |= _flattened(group)
        groups = header.PerFrameFunctionalGroupsSequence
        if len(groups) != int(header.NumberOfFrames):
            raise ValueError(f"{header.NumberOfFrames} frames, but functional groups of {len(groups)}")
        return [Frame(file, index + 1, common | _flattened(group)) for index, group in enumerate(groups)]


def _flattened(group: pydicom.Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for element in group:
        if element.VR == "SQ" and element.value:
            found |= _plain(element.value[0])
    return found


def _plain(dataset: pydicom.Dataset) -> dict[str, Any]:
    """The values of a data set that are kept, as Python's own types; empty ones are left out, and faulty ones.

    Raises:
        ValueError: one is faulty without which there is no volume.
    """
    found = {}
    for tag in dataset.keys() & _NAMES.keys():  # others need not be decoded
        name = _NAMES[tag]
        try:
            element = dataset[tag]
            if element.value in (None, "", []):
                continue
            found[name] = "given" if element.VR == "SQ" else _value(element.value, element.VR in _NUMBERS)
            if name in _GEOMETRY and not (len(found[name]) == _GEOMETRY[name] and all(map(math.isfinite, found[name]))):
                raise ValueError("no such numbers")
        except Exception as error:
            if name in (*_GEOMETRY, "Rows", "Columns", "RescaleSlope", "RescaleIntercept"):
                raise ValueError(f"{name} is faulty") from error
            found.pop(name, None)
    return found


def _value(value: Any, is_number: bool) -> Any:
    if isinstance(value, MultiValue):
        return tuple(_value(one, is_number) for one in value)
    return float(value) if is_number else str(value).strip()
