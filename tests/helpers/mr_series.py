"""MR series as a scanner would write them, made of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from braintum.dicom.results.prediction import stable_uid


def write_mr_series(folder: Path, image: sitk.Image, study: str = "study", name: str = "T1ce", **headers: Any) -> Path:
    """A file a slice, in an order that says nothing: neither file names nor InstanceNumber follow the positions.

    Args:
        folder: made if need be.
        image: int16, in any orientation.
        study: that UIDs are made of.
        name: SeriesDescription.
        **headers: further elements by keyword, or others in place of those that are set here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    array, order = sitk.GetArrayFromImage(image), np.random.default_rng(0).permutation(image.GetDepth())
    x, y, z = image.GetSpacing()
    cosines = np.reshape(image.GetDirection(), (3, 3))
    for index, plane in enumerate(array):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
        uid = stable_uid(study, name, str(index))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = stable_uid(study), stable_uid(study, name)
        dataset.FrameOfReferenceUID = stable_uid(study, "frame of reference")
        dataset.PatientName, dataset.PatientID = "Müller^Jörg", f"ID {study}"
        dataset.PatientBirthDate, dataset.PatientSex = "19500102", "M"
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240305", "101112", "7"
        dataset.StudyDescription, dataset.AccessionNumber, dataset.ReferringPhysicianName = "MR head", "A77", "Doe^Ann"
        dataset.Laterality, dataset.PatientPosition = "", "HFS"
        dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "MR", "Maker", 5
        dataset.SeriesDescription, dataset.InstanceNumber = name, int(order[index]) + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "2D", 12, 600
        dataset.EchoTrainLength, dataset.PositionReferenceIndicator = 1, ""
        dataset.ContrastBolusAgent = "Gadobutrol"
        dataset.PixelSpacing, dataset.SliceThickness = [f"{y:.8g}", f"{x:.8g}"], f"{z:.8g}"
        dataset.ImageOrientationPatient = [f"{cosine:.10f}" for cosine in cosines[:, :2].T.ravel()]
        dataset.ImagePositionPatient = [
            f"{mm:.6f}" for mm in image.TransformIndexToPhysicalPoint((0, 0, index))
        ]
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = plane.astype("<i2").tobytes()
        dataset.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "a scanner's secret")
        dataset.update({keyword: pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(keyword), value)
                        for keyword, value in headers.items()})
        dataset.save_as(folder / f"IM{(int(order[index]) * 7) % 1000:04d}", enforce_file_format=True)
    return folder
