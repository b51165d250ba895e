"""One damaged file: a message that names it, the other cases done, and nothing written where nothing should be.

`benchmarks/robustness/damaged_inputs.py` runs thousands of such cases, drawn at random; here are a few of each kind.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
from damage_runner import import_all, run_damaged, write_whole
from damaged_commands import BY_NAME

import_all()
for name, damages in json.loads(sys.argv[2]).items():
    folder = Path(sys.argv[1]) / name
    expected = write_whole(BY_NAME[name], folder)
    for number, damage in enumerate(damages):
        found = run_damaged(BY_NAME[name], folder / "whole", expected, folder / "run", (7, number), damage)
        print("found", json.dumps([name, damage, found.verdict, f"{found.file}: {found.fault} {found.text[-800:]}"]))
"""
SKIPPED, ERROR, HARMLESS = "skipped", "error", "harmless"
EXPECTED = {
    "figshare": {"MATLAB field": SKIPPED, "MATLAB version 5": SKIPPED, "link to itself": SKIPPED},
    "brisc": {"another picture": SKIPPED, "picture header": SKIPPED},
    "br35h": {"JSON text": ERROR, "folder instead of file": SKIPPED, "odd name": SKIPPED},
    "lgg": {"CSV text": ERROR, "link to nothing": SKIPPED, "folder loop beside it": HARMLESS},
    "brats": {"gzip bomb": SKIPPED, "truncated within gzip": SKIPPED, "other geometry": SKIPPED},
    "folder, NRRD": {"NRRD header": SKIPPED, "NaN or infinity": SKIPPED},
    "folder, DICOM": {"DICOM slice missing": SKIPPED, "DICOM slice twice": SKIPPED, "DICOM series mixed": SKIPPED},
    "combine": {"several values a voxel": SKIPPED},
    "audit of folders": {"truncated within gzip": SKIPPED, "other content": SKIPPED},
    "predict": {"NaN or infinity": SKIPPED, "other geometry": SKIPPED, "CSV text": ERROR},
    "model of predict": {"JSON text": ERROR, "checkpoint content": ERROR},
    "evaluate": {"gzip bomb": SKIPPED, "CSV text": ERROR},
    "postprocess": {"truncated within gzip": SKIPPED, "JSON text": SKIPPED},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[str, str]]:
    """Command and damage → verdict and what was said; all from one process, which imports the libraries once."""
    path = os.pathsep.join(filter(None, sys.path))
    arguments = [str(tmp_path_factory.mktemp("damaged")), json.dumps({name: list(x) for name, x in EXPECTED.items()})]
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert finished.returncode == 0, finished.stderr
    rows: list[Any] = [json.loads(line[6:]) for line in finished.stdout.splitlines() if line.startswith("found ")]
    return {(name, damage): (verdict, text) for name, damage, verdict, text in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_one_damaged_file(name: str, found: dict[tuple[str, str], tuple[str, str]]) -> None:
    for damage, expected in EXPECTED[name].items():
        verdict, text = found[name, damage]
        assert verdict == expected, f"{damage}: {verdict}: {text}"
