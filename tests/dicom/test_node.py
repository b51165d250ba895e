"""The node's queue, what it takes, and what it does when it is killed or the archive is away."""

import logging
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from crash_tools import killed_before
from dicom_data import grid, uid, write_series
from dicom_results import HEADER, free_port
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, SecondaryCaptureImageStorage, Verification

from braintum.dicom.node.node import Node
from braintum.dicom.node.receiver import start_receiver, transfer_syntaxes
from braintum.dicom.node.sender import Destination, RefusedError, send
from braintum.dicom.node.spool import Limits, Spool, SpoolFullError
from braintum.dicom.serve_cli import main, serve


def study_files(folder: Path, study: str = "A", slices: int = 2) -> list[Path]:
    image = grid(np.arange(slices * 12).reshape(slices, 3, 4).astype(np.int16))
    tags = {**HEADER, "StudyInstanceUID": uid(study), "SeriesInstanceUID": uid(study, 1)}
    return write_series(folder / study, image, tags, prefix=study)


def copy_images(images: Path, output: Path) -> None:
    """In place of a model: the images themselves are the results."""
    for file in images.glob("*.dcm"):
        (output / file.name).write_bytes(file.read_bytes())


def node_of(spool: Spool, sent: list[str], **options) -> Node:
    defaults = {"predict": copy_images, "send": lambda files: sent.extend(file.name for file in files)}
    return Node(**{"spool": spool, "quiet_s": 0, "keep_s": 3600, **defaults, **options})


def fill(spool: Spool, *names: str, study: str = "1.2") -> None:
    for name in names:
        spool.store(study, name, name.encode())


def test_a_study_is_predicted_and_sent_once(tmp_path):
    spool, sent = Spool(tmp_path), []
    fill(spool, "a", "b")
    fill(spool, "b")
    node = node_of(spool, sent)
    for _ in range(3):
        node.round()
    assert len(sent) == 2
    assert [study.state()["step"] for study in Spool(tmp_path).studies()] == ["sent"]


def test_a_study_waits_until_it_is_quiet(tmp_path):
    spool, sent = Spool(tmp_path), []
    fill(spool, "a")
    node_of(spool, sent, quiet_s=60).round()
    assert sent == []


def test_late_images_are_predicted_with_the_others(tmp_path):
    spool, sent = Spool(tmp_path), []
    node = node_of(spool, sent)
    fill(spool, "a", "b")
    node.round()
    fill(spool, "c")
    node.round()
    assert (len(sent), len(set(sent))) == (5, 3)


def test_done_studies_are_removed(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, "a")
    node_of(spool, [], keep_s=0).round()
    node_of(spool, [], keep_s=0).round()
    assert list(tmp_path.iterdir()) == [] and spool._bytes == 0


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(studies=1), SpoolFullError),
        (Limits(total_bytes=1), SpoolFullError),
        (Limits(instance_bytes=0), ValueError),
        (Limits(instances=0), ValueError),
    ],
)
def test_limits(tmp_path, limits, error):
    fill(Spool(tmp_path), "a", study="1.3")
    with pytest.raises(error):
        fill(Spool(tmp_path, limits), "b", study="1.4")


def test_a_name_in_a_header_becomes_no_file_name(tmp_path):
    fill(Spool(tmp_path / "spool"), "../../../evil", study="/etc/evil")
    assert [path for path in tmp_path.rglob("*") if "evil" in path.name or path.parent == tmp_path] == [
        tmp_path / "spool"
    ]


@pytest.mark.parametrize(
    ("name", "number"), [("state.json", 1), ("state.json", 2), ("state.json", 3), ("*.dcm", 1), ("*.dcm", 2)]
)
def test_killed_at_any_moment(tmp_path, name, number):
    sent_file = tmp_path / "sent"

    def run() -> None:
        spool = Spool(tmp_path / "spool")
        fill(spool, "a", "b")  # the sender repeats what was not acknowledged
        Node(spool, copy_images, lambda files: sent_file.write_text(str(sorted(f.name for f in files))), 0, 60).round()

    killed_before(name, number, run)
    run()
    (study,) = Spool(tmp_path / "spool").studies()
    assert study.state()["step"] == "sent"
    assert sent_file.read_text() == str([file.name for file in study.image_files()])
    assert len(study.image_files()) == 2


def test_a_study_that_ends_the_process_is_given_up(tmp_path):
    def die(images: Path, output: Path) -> None:
        raise KeyboardInterrupt

    spool = Spool(tmp_path)
    fill(spool, "a")
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            node_of(Spool(tmp_path), [], predict=die).round()
    node_of(spool, [], predict=die).round()
    assert next(spool.studies()).state()["step"] == "failed"


def test_what_fails_is_kept_and_said_without_names(tmp_path, caplog):
    def refuse(images: Path, output: Path) -> None:
        raise ValueError("Müller^Jörg has no T1ce")

    caplog.set_level(logging.INFO)
    spool = Spool(tmp_path)
    fill(spool, "a")
    node_of(spool, [], predict=refuse).round()
    assert next(spool.studies()).state() == {
        "content": next(spool.studies()).content(),
        "step": "failed",
        "why": "Müller^Jörg has no T1ce",
    }
    assert "not predicted" in caplog.text and "Müller" not in caplog.text


def test_sending_is_repeated_while_the_archive_is_away(tmp_path):
    calls = []

    def away(files: list[Path]) -> None:
        calls.append(files)
        if len(calls) == 1:
            raise OSError("away")

    spool = Spool(tmp_path)
    fill(spool, "a")
    node = node_of(spool, [], send=away)
    node.round()
    node.round()
    assert len(calls) == 1, "there is a pause"
    node._pauses = {name: (pause, time.monotonic()) for name, (pause, _) in node._pauses.items()}
    node.round()
    assert len(calls) == 2 and next(spool.studies()).state()["step"] == "sent"


@pytest.fixture
def listening(tmp_path):
    """A node's receiver: its spool and port."""
    spool, port = Spool(tmp_path / "spool"), free_port()
    server = start_receiver(spool, "BRAINTUM", ("127.0.0.1", port), ["SCANNER"])
    yield spool, port
    server.shutdown()


def test_images_arrive(listening, tmp_path):
    spool, port = listening
    files = study_files(tmp_path)
    send(files, Destination("127.0.0.1", port, "BRAINTUM"), "SCANNER")
    send(files, Destination("127.0.0.1", port, "BRAINTUM"), "SCANNER")
    (study,) = spool.studies()
    received = {pydicom.dcmread(file).SOPInstanceUID: file for file in study.image_files()}
    for file in files:
        sent = pydicom.dcmread(file)
        assert pydicom.dcmread(received[sent.SOPInstanceUID]).PixelData == sent.PixelData


@pytest.mark.parametrize(("called", "calling"), [("BRAINTUM", "STRANGER"), ("OTHER", "SCANNER")])
def test_strangers_are_refused(listening, called, calling, tmp_path):
    with pytest.raises(OSError, match="cannot be reached, or refuses"):
        send(study_files(tmp_path), Destination("127.0.0.1", listening[1], called), calling)


def test_results_are_not_taken_for_images(listening, tmp_path):
    (file, _) = study_files(tmp_path)
    dataset = pydicom.dcmread(file)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.save_as(file)
    with pytest.raises((OSError, RefusedError)):
        send([file], Destination("127.0.0.1", listening[1], "BRAINTUM"), "SCANNER")
    assert list(listening[0].studies()) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"StudyInstanceUID": ""}, 0xC000),
        ({"limits": Limits(total_bytes=10)}, 0xA700),
        ({"limits": Limits(instance_bytes=10)}, 0xC000),
        ({}, 0),
    ],
)
def test_status(listening, tmp_path, change, status):
    spool, port = listening
    spool.limits = change.get("limits", spool.limits)
    dataset = pydicom.dcmread(study_files(tmp_path)[0])
    dataset.StudyInstanceUID = change.get("StudyInstanceUID", dataset.StudyInstanceUID)
    entity = AE("SCANNER")
    entity.add_requested_context(MRImageStorage, dataset.file_meta.TransferSyntaxUID)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="BRAINTUM")
    assert association.send_c_echo().Status == 0
    assert association.send_c_store(dataset).Status == status
    association.release()


def test_refusal_for_good_and_for_now(tmp_path):
    answers, port = iter([0xA700, 0xC000, 0x0000]), free_port()
    entity = AE("ARCHIVE")
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: next(answers))]
    )
    try:
        files, archive = study_files(tmp_path), Destination("127.0.0.1", port, "ARCHIVE")
        with pytest.raises(OSError, match="not taken for now"):
            send(files, archive, "BRAINTUM")
        with pytest.raises(RefusedError, match="status 0xC000"):
            send(files, archive, "BRAINTUM")
    finally:
        server.shutdown()


def test_transfer_syntaxes_can_be_decoded():
    names = {syntax.name for syntax in transfer_syntaxes()}
    assert {"Explicit VR Little Endian", "Implicit VR Little Endian", "RLE Lossless"} <= names
    assert not any("MPEG" in name for name in names)


@pytest.mark.parametrize("text", ["archive", "archive:104", ":104:A", "a:0:A", "a:99999:A", "a:104:" + 17 * "A"])
def test_destination_that_is_none(text):
    with pytest.raises(ValueError, match="is no HOST:PORT:AET"):
        Destination.parse(text)


def test_destination():
    assert Destination.parse("fe80::1:104:ARCHIVE") == Destination("fe80::1", 104, "ARCHIVE")


def test_command_says_what_is_wrong(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["braintum_serve", "--send-to", "nowhere", "--spool", str(tmp_path)])
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: 'nowhere' is no HOST:PORT:AET")
    with pytest.raises(ValueError, match="is no AE title"):
        serve(["--send-to", "a:104:B", "--spool", str(tmp_path), "--aet", 17 * "A"])
