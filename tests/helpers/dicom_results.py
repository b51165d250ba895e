"""Predictions on DICOM series, and an archive to send them to."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def by_dcmqi(segmentation: Path, reference: sitk.Image, folder: Path) -> np.ndarray:
    """The segments' numbers on a grid, (Z, Y, X), as dcmqi reads them; skips the test where it is not installed."""
    program = shutil.which("segimage2itkimage") or shutil.which("segimage2itkimage", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("dcmqi is not installed")
    command = [program, "--inputDICOM", segmentation, "--outputDirectory", folder, "--outputType", "nii"]
    subprocess.run([*command, "--mergeSegments"], check=True, capture_output=True)
    found = sitk.ReadImage(str(folder / "1.nii.gz"))
    return sitk.GetArrayFromImage(sitk.Resample(found, reference, sitk.Transform(), sitk.sitkNearestNeighbor))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Orthanc:
    """An archive on the loopback address.

    Attributes:
        address: of its REST interface.
        dicom_port: where it takes DICOM, with the AE title ARCHIVE.
    """

    def __init__(self, http_port: int, dicom_port: int) -> None:
        self.address, self.dicom_port = f"http://127.0.0.1:{http_port}", dicom_port

    def get(self, path: str) -> bytes:
        """What its REST interface answers."""
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return answer.read()

    def post(self, path: str, content: bytes) -> Any:
        """The JSON that its REST interface answers."""
        with urllib.request.urlopen(self.address + path, content, timeout=60) as answer:
            return json.loads(answer.read())

    def has_dicomweb(self) -> bool:
        """Whether it has the plugin."""
        return "dicom-web" in json.loads(self.get("/plugins"))

    def instances(self, modality: str = "") -> list[str]:
        """Identifiers of all objects, or those of one modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality or "*"}}
        return self.post("/tools/find", json.dumps(query).encode())


@contextmanager
def running_orthanc(folder: Path, node_port: int) -> Iterator[Orthanc]:
    """Starts an archive that knows a node BRAINTUM; skips the test where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc)")
    folder.mkdir()
    archive = Orthanc(free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": int(archive.address.rpartition(":")[2]),
        "DicomPort": archive.dicom_port,
        "DicomAet": "ARCHIVE",
        "RemoteAccessAllowed": False,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomModalities": {"node": ["BRAINTUM", "127.0.0.1", node_port]},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait_for(archive, process, folder / "log.txt")
            yield archive
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(archive: Orthanc, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"Orthanc ended: {log.read_text()[-2000:]}")
        try:
            archive.get("/system")
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("Orthanc does not answer")
