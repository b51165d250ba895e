"""benchmarks/gpu_check.sh: every part exists, and what is through is not done again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu_check.sh"
PARTS = re.search(r"^PARTS=\((.*?)\)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1].split()  # type: ignore[index]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(SCRIPT), "cpu", "--dry", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_described_and_starts_what_is_there(part: str) -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    assert re.search(rf"^#  .*\b{part}\b", source, re.MULTILINE)
    body = re.search(rf"^{part}\(\) \{{(.*?)\}}$", source, re.MULTILINE | re.DOTALL)
    assert body is not None
    scripts = re.findall(r'"\$here/([\w/]+\.py)"', body[1])
    assert scripts and all((SCRIPT.parent / script).is_file() for script in scripts)
    assert '"$out' in body[1] or part == "blocks"


def test_parts_that_are_through_are_skipped_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for number, part in enumerate(PARTS):
        (tmp_path / part).mkdir()
        figures = {"rows": [{"way": f"way {number}", "median, ms": number}]}
        (tmp_path / part / "figures.json").write_text(json.dumps(figures))
    run = gpu_check(str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert re.findall(r"=== (\w+): done before", run.stdout) == PARTS
    assert all(f"| way {number} " in run.stdout for number in range(len(PARTS)))


def test_a_part_that_fails_is_named_and_not_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    python = programs / "python"  # fails in the folds, else writes figures where it is told
    python.write_text('#!/bin/bash\n[ "$2" = folds ] && exit 1\n[ "$2" = table ] || echo "{}" > "${@: -1}"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    run = gpu_check(str(tmp_path / "work"), "folds_2d", "steps_2d")
    assert run.returncode == 1 and "failed: folds_2d" in run.stderr
    assert not (tmp_path / "work" / "folds_2d").exists()
    assert (tmp_path / "work" / "steps_2d" / "figures.json").is_file()
    assert gpu_check(str(tmp_path / "work"), "fold").returncode == 2
