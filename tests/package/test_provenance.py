"""What made an output is written beside it, and tells nothing of machine, user or folders."""

import json
import platform
from pathlib import Path

import pytest

from braintum.commands.provenance import command_line, content_hash, provenance, read_provenance, versions
from braintum.commands.version import __version__
from braintum.conversion.cli import main as convert
from braintum.conversion.sources.phantoms import write_figshare_phantoms


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/usr/local/bin/braintum_predict", "braintum_predict"),
        ("../jane/out", "out"),
        (r"C:\Users\jane\out", "out"),
        ("--output=/home/jane/out", "--output=out"),
        ("T1ce=/home/jane/*t1c*", "'T1ce=*t1c*'"),
        ("2d", "2d"),
        ("--bad=", "--bad="),
        ("out/", "out/"),
        ("two words", "'two words'"),
    ],
)
def test_command_names_no_folder(argument: str, expected: str) -> None:
    assert command_line([argument]) == expected


def test_same_command_same_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/braintum_predict", "-i", "/data/jane/in"])
    assert provenance(a=1) == provenance(a=1)
    assert provenance(a=1)["command"] == "braintum_predict -i in" and provenance(a=1)["a"] == 1
    found = versions()
    assert (found["braintum"], found["python"]) == (__version__, platform.python_version())
    assert found["nnunetv2"].startswith("2.") and json.dumps(found)


def test_hash_is_of_the_content_not_of_its_layout() -> None:
    assert content_hash({"a": (1, 2), "b": None}) == content_hash({"b": None, "a": [1, 2]})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_unreadable_provenance_is_none(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
    for text in ("{", "[]"):
        (tmp_path / "provenance.json").write_text(text)
        assert read_provenance(tmp_path) is None
    (tmp_path / "provenance.json").write_text('{"command": "a"}')
    assert read_provenance(tmp_path) == {"command": "a"}


def test_conversion_tells_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    write_figshare_phantoms(tmp_path / "source", n_patients=5, slices_per_patient=1, size=64)
    assert convert(["figshare", str(tmp_path / "source"), "-d", "7", "-np", "1", "--fraction", "0.9"]) == 0
    found = read_provenance(tmp_path / "raw" / "Dataset007_Figshare")
    assert found is not None and str(tmp_path) not in json.dumps(found)
    assert found["command"] == "braintum_convert figshare source"
    assert found["selection"] == {"fraction": 0.9, "seed": 42} and found["versions"] == versions()
