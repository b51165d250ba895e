"""A data set in nnUNet_raw: numbers that are taken, replacement on request, and conversions that are interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
from phantom_data import FAULTS, FOLDER, NAME, blob_slice, change, digest, interrupt_after, request, write_source

from braintum.conversion.building import raw_dataset
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import STATE_FILE, ConversionRequest, DatasetTakenError
from braintum.conversion.format.cases import read_cases
from braintum.conversion.sources.figshare import convert
from braintum.conversion.sources.phantoms import write_mat


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.mark.parametrize("options", [{"dataset_id": 0}, {"dataset_id": 1000}, {"name": "a b"}, {"n_processes": 0}])
def test_impossible_requests_are_refused(source, raw, options):
    with pytest.raises(ValueError, match="; c|change -np"):
        ConversionRequest(**{"source": source, "raw_folder": raw, "dataset_id": 1, "name": "A", **options})


@pytest.mark.parametrize("place", ["raw", "preprocessed"])
def test_number_of_another_data_set_is_refused(source, raw, tmp_path, place):
    (tmp_path / place / "Dataset511_Other").mkdir(parents=True)
    with pytest.raises(DatasetTakenError, match=r"Dataset511_Other: .* taken; choose another -d, or remove"):
        convert(request(source, raw, overwrite=True, other_folders=(tmp_path / "preprocessed",)))
    assert not (raw / NAME).exists()


def test_complete_data_set_is_replaced_only_on_request(source, raw):
    convert(request(source, raw))
    before = digest(raw)
    with pytest.raises(DatasetTakenError, match=r"already taken; .* --overwrite"):
        convert(request(source, raw))
    assert digest(raw) == before

    (source / FOLDER / "12.mat").unlink()
    FAULTS["label 4"][0](source / FOLDER / "4.mat")
    with pytest.raises(SourceError):
        convert(request(source, raw, overwrite=True))
    assert digest(raw) == before

    change(source / FOLDER / "4.mat", "label", np.array([[2.0]]))
    convert(request(source, raw, overwrite=True))
    assert sorted(path.name for path in raw.iterdir()) == [NAME]
    assert len(read_cases(raw / NAME / "cases.csv")) == 11
    assert not (raw / NAME / "imagesTr" / "figshare_0012_0000.nii.gz").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_conversion_resumes_to_identical_files(source, raw, tmp_path, monkeypatch, caplog, overwrite):
    convert(request(source, tmp_path / "uninterrupted"))
    build = raw / (f".new_{NAME}" if overwrite else NAME)
    if overwrite:
        shutil.copytree(tmp_path / "uninterrupted", raw)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            convert(request(source, raw, overwrite=overwrite))
    assert "the same command continues" in caplog.text
    assert len(list((build / "imagesTr").iterdir())) == 6
    assert len(list((build / "labelsTr").iterdir())) == 5
    assert (build / STATE_FILE).exists()
    assert not (build / "dataset.json").exists()
    if overwrite:
        assert digest(raw / NAME) == digest(tmp_path / "uninterrupted" / NAME)
    (build / "imagesTr" / ".partial-0123-figshare_0007_0000.nii.gz").write_bytes(b"left by a killed process")
    (build / "imagesTr" / "figshare_0099_0000.nii.gz").write_bytes(b"no longer in the source")

    with monkeypatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        convert(request(source, raw, overwrite=overwrite))
    assert len(calls) == 2 * 7
    assert digest(raw) == digest(tmp_path / "uninterrupted")


def test_interruption_before_dataset_json_resumes(source, raw, tmp_path, monkeypatch):
    convert(request(source, tmp_path / "uninterrupted"))

    def fail_on_last(path, content):
        if path.name == "dataset.json":
            raise OSError("disk full")
        write(path, content)

    write = raw_dataset.write_json_atomic
    with monkeypatch.context() as patch:
        patch.setattr(raw_dataset, "write_json_atomic", fail_on_last)
        with pytest.raises(OSError, match="disk full"):
            convert(request(source, raw))
    assert not (raw / NAME / "dataset.json").exists()
    convert(request(source, raw))
    assert digest(raw) == digest(tmp_path / "uninterrupted")


def test_changed_source_is_converted_again_on_resuming(source, raw, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            convert(request(source, raw))
    image, mask = blob_slice(77)
    write_mat(source / FOLDER / "1.mat", image, mask, 1, "P000")
    later = (raw / NAME / "imagesTr" / "figshare_0001_0000.nii.gz").stat().st_mtime + 10
    os.utime(source / FOLDER / "1.mat", (later, later))
    convert(request(source, raw))
    written = sitk.ReadImage(str(raw / NAME / "imagesTr" / "figshare_0001_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), image)


def test_unfinished_conversion_of_another_source_is_refused(source, raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            convert(request(source, raw))
    other = write_source(tmp_path / "other", n_patients=4)
    before = digest(raw)
    with pytest.raises(DatasetTakenError, match="unfinished conversion of another source"):
        convert(request(other, raw))
    assert digest(raw) == before
    convert(request(other, raw, overwrite=True))
    assert len(read_cases(raw / NAME / "cases.csv")) == 8
    assert sorted(path.name for path in raw.iterdir()) == [NAME]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_ctrl_c_ends_command_and_workers(seconds):
    code = (
        # of a shell in the background, children inherit that the signal is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from braintum.conversion.files.parallel import run_cases; from phantom_data import slow_case\n"
        "print('started', flush=True)\nrun_cases(slow_case, list(range(2000)), 2, 'test')"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    try:
        # the pipe closes when the last worker has ended, too
        output, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert output.rstrip().endswith(b"KeyboardInterrupt")
