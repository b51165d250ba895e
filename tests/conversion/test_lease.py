"""Leases: one holder at a time, whoever crashes, and however many come at once."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from crash_tools import start, wait

from braintum.conversion.files import lease
from braintum.conversion.files.lease import LeasedError, holder_of, leased

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are forked")


def test_many_at_once_are_one_at_a_time(tmp_path: Path) -> None:
    def count() -> None:
        with leased(tmp_path, "count"):
            number = int((tmp_path / "number").read_text())
            time.sleep(0.001)
            (tmp_path / "number").write_text(str(number + 1))

    (tmp_path / "number").write_text("0")
    assert [wait(process) for process in [start(count) for _ in range(20)]] == [0] * 20
    assert (tmp_path / "number").read_text() == "20"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_holder_is_named_and_not_waited_for(tmp_path: Path) -> None:
    assert holder_of(tmp_path, "training") is None
    with leased(tmp_path, "training") as waited:
        assert not waited and holder_of(tmp_path, "training")["pid"] == os.getpid()  # type: ignore[index]
        held = pytest.raises(LeasedError, match=rf"process {os.getpid()} on .* is at it \(training\)")
        with held, leased(tmp_path, "training", wait=False):
            raise AssertionError("it was held twice")
        with leased(tmp_path, "other", wait=False):
            pass
    assert holder_of(tmp_path, "training") is None


def test_killed_holder(tmp_path: Path) -> None:
    def hold() -> None:
        with leased(tmp_path, "training"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(start(hold)) == -signal.SIGKILL
    assert len(list((tmp_path / ".lease-training").iterdir())) == 1
    with leased(tmp_path, "training", wait=False) as waited:
        assert not waited


def test_holder_on_a_machine_that_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.5)
    place = tmp_path / ".lease-training"
    place.mkdir()
    file = place / "of another machine"
    file.write_text(json.dumps({"host": "elsewhere", "space": "", "pid": 1}))
    began = time.monotonic()
    with leased(tmp_path, "training") as waited:
        assert waited and time.monotonic() - began > 0.5 and not file.exists()


def test_holder_on_another_machine_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 20.0)
    place = tmp_path / ".lease-training"
    place.mkdir()
    file = place / "of another machine"
    file.write_text(json.dumps({"host": "elsewhere", "space": "", "pid": 1}))

    def beat() -> None:
        for _ in range(100):
            time.sleep(0.1)
            os.utime(file)

    process = start(beat)
    try:
        held = pytest.raises(LeasedError, match="process 1 on elsewhere is at it")
        with held, leased(tmp_path, "training", wait=False):
            raise AssertionError("it was held twice")
    finally:
        os.kill(process, signal.SIGKILL)
        wait(process)
