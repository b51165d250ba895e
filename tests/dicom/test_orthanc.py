"""A study's way through a real archive: images in Orthanc, to the node, results back, and read by another program."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import REPOSITORY
from dicom_data import STUDY, grid, write_series
from dicom_results import HEADER, by_dcmqi, free_port, running_orthanc
from PIL import Image
from tiny_training import save_model, write_preprocessed

from braintum.dicom.node.node import Node
from braintum.dicom.node.receiver import start_receiver
from braintum.dicom.node.sender import Destination, send
from braintum.dicom.node.spool import Spool
from braintum.dicom.node.study_predictor import StudyPredictor
from braintum.inference.api import load_predictor, predict_folder
from braintum.inference.cli import main
from braintum.inference.dicom.study_objects import ObjectOptions
from braintum.inference.ready.predict_images import predict_images
from braintum.inference.ready.zoo import ready_model

LABELS = {"background": 0, "whole": [1, 2], "core": [2]}


def slices() -> sitk.Image:
    """Slices of different patients one above the other: each is predicted for itself."""
    files = sorted((REPOSITORY / "docs" / "_static" / "slices").glob("*.jpg"))
    pictures = [Image.open(file).convert("L").resize((256, 200)) for file in files]
    return grid(np.stack([np.asarray(picture).astype(np.int16) for picture in pictures]), (0.9, 1.1, 5.0))


def through_archive(image: sitk.Image, predict: StudyPredictor, folder: Path) -> np.ndarray:
    """The mask (Z, Y, X) that comes back of an image, read by dcmqi on the image's own grid."""
    port = free_port()
    with running_orthanc(folder / "archive", port) as archive:
        spool = Spool(folder / "spool")
        destination = Destination("127.0.0.1", archive.dicom_port, "ARCHIVE")
        node = Node(spool, predict, lambda files: send(files, destination, "BRAINTUM"), 0, 3600)
        server = start_receiver(spool, "BRAINTUM", ("127.0.0.1", port), ["ARCHIVE"])
        try:
            for file in write_series(folder / "series", image, HEADER):
                archive.post("/instances", file.read_bytes())
            (study,) = json.loads(archive.get("/studies"))
            archive.post("/modalities/node/store", study.encode())
            node.round()
        finally:
            server.shutdown()
        assert [queued.state()["step"] for queued in spool.studies()] == ["sent"]
        assert json.loads(archive.get("/studies")) == [study], "results are in the study of the images"
        files = {}
        for modality in ("SEG", "SR", "OT"):
            (instance,) = archive.instances(modality)
            files[modality] = folder / f"{modality}.dcm"
            files[modality].write_bytes(archive.get(f"/instances/{instance}/file"))
    if shutil.which("dciodvfy"):
        for file in files.values():
            assert "Error" not in subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True).stderr
    (folder / "read").mkdir()
    return by_dcmqi(files["SEG"], image, folder / "read")


def volume_of(image: sitk.Image, folder: Path) -> Path:
    """A folder with the image as NIfTI, to be predicted without DICOM."""
    folder.mkdir()
    sitk.WriteImage(image, str(folder / "case_0000.nii.gz"))
    return folder


@pytest.mark.slow
def test_study_goes_through_the_archive_and_back(tmp_path):
    predict = StudyPredictor.of_ready_model(ready_model(), "cpu", patterns={}, options=ObjectOptions())
    found = through_archive(slices(), predict, tmp_path)
    predict_images(predict.predictor, None, volume_of(slices(), tmp_path / "nifti"), tmp_path / "predicted")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / "case.nii.gz")))
    assert expected.any() and np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
def test_case_of_brats_goes_through_the_archive_and_back(nnunet_folders, tmp_path):
    file = next(Path(os.environ["BRAINTUM_TEST_DATA"]).glob("brats2021/*/*_t1ce.nii.gz"))
    image = sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkInt16)[:, :, 60:100]
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d", labels=LABELS)
    dataset.dataset_json["regions_class_order"] = [1, 2]
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    predictor = load_predictor(model, device="cpu", mirroring=False)
    found = through_archive(image, StudyPredictor(predictor, None, {}, ObjectOptions()), tmp_path)
    predict_folder(volume_of(image, tmp_path / "nifti"), tmp_path / "predicted", predictor, show_progress=False)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / "case.nii.gz")))
    assert expected.any() and np.array_equal(found, expected)


@pytest.mark.slow
def test_study_is_fetched_and_results_stored_by_dicomweb(tmp_path, capsys, monkeypatch):
    with running_orthanc(tmp_path / "archive", 1) as archive:
        if not archive.has_dicomweb():
            pytest.skip("Orthanc has no DICOMweb (Debian: orthanc-dicomweb)")
        for file in write_series(tmp_path / "series", slices(), HEADER):
            archive.post("/instances", file.read_bytes())
        options = ["--dicomweb", f"{archive.address}/dicom-web", "-o", str(tmp_path / "out"), "-device", "cpu"]
        monkeypatch.setattr("sys.argv", ["braintum_predict", "-i", STUDY, "--dicom", "--store", *options])
        assert main() == 0, capsys.readouterr().err
        assert {modality: len(archive.instances(modality)) for modality in ("MR", "SEG", "SR", "OT")} == {
            "MR": 3,
            "SEG": 1,
            "SR": 1,
            "OT": 1,
        }
        monkeypatch.setattr("sys.argv", ["braintum_predict", "-i", "1.2.3", *options])
        assert main() == 1
        assert "has no MR images of the study 1.2.3" in capsys.readouterr().err
