"""Runs a command on an input of which one file is damaged, in a forked process, and judges how it ends."""

import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from damaged_command import DamagedCommand
from damages import BY_NAME, Damage, draw_damage, is_broken

MEMORY = 4 * 2**30
TIME_LIMIT = 60.0
"""In seconds of processor time; of wall time ten times as much."""
POLL = 0.01
ERROR, SKIPPED, HARMLESS, BAD = "error", "skipped", "harmless", "BAD"
SOME_SKIPPED = 3
OUTPUTS = ("out", "in/Dataset500_Damaged", "in/.new_Dataset500_Damaged")
STORES_IN_MODEL = ("calibrate",)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        command: its name.
        damage: what was done.
        file: to what, relative to the input.
        verdict: ``error`` (nothing done, file named), ``skipped`` (the others done, file named), ``harmless`` (all
            done, and valid) or ``BAD``.
        fault: what is bad.
        code: the exit code.
        seconds: wall time.
        memory: largest resident size, bytes.
        text: the end of what it said.
    """

    command: str
    damage: str
    file: str
    verdict: str
    fault: str = ""
    code: int | None = None
    seconds: float = 0.0
    memory: int = 0
    text: str = ""


def import_all() -> None:
    """Imports what the commands import late, once, for all processes that are forked from here."""

    import braintum.trainers.multi_task  # noqa: F401

    gc.freeze()


def run_forked(body: Callable[[], dict], log: Path, time_limit: float = TIME_LIMIT) -> tuple[dict, str, float, int]:
    """Calls a function in a forked process.

    Args:
        body: what it returns has to be fit for JSON.
        log: gets standard output and error, of libraries too.
        time_limit: see `TIME_LIMIT`; the process is killed then, and where its memory exceeds the limit.

    Returns:
        What ``body`` returned (empty if it did not), why not, seconds, and the largest resident size in bytes.
    """
    started = time.monotonic()
    answer = log.with_suffix(".answer")
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            content = json.dumps(body())
            sys.stdout.flush()
            sys.stderr.flush()
            answer.write_text(content)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    fault = ""
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            break
        if not fault and (_seconds(process) > time_limit or time.monotonic() - started > 10 * time_limit):
            fault = f"hangs: killed after {_seconds(process):.0f} s of processor time"
        elif not fault and _resident(process) > MEMORY:
            fault = "takes more than 4 GiB of memory"
        if fault:
            os.kill(process, signal.SIGKILL)
        time.sleep(POLL)
    if not fault and os.WIFSIGNALED(status):
        fault = f"crashes with signal {os.WTERMSIG(status)}"
    elif not fault and os.WEXITSTATUS(status):
        fault = "fails outside the command"
    found = json.loads(answer.read_text()) if answer.is_file() else {}
    return found, fault, time.monotonic() - started, usage.ru_maxrss * 1024


def _seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def write_whole(command: DamagedCommand, folder: Path) -> int:
    """Writes the undamaged input into ``folder / "whole"``, in a process of its own; returns its number of cases.

    Raises:
        RuntimeError: the command does not succeed on it.
    """

    def body() -> dict:
        command.write(folder / "whole")
        trial = folder / "trial"
        shutil.copytree(folder / "whole", trial, symlinks=True)
        code = _run(command, trial)
        return {"code": code, "count": command.count(trial)}

    folder.mkdir(parents=True)
    found, fault, _, _ = run_forked(body, folder / "whole.log", 300)
    shutil.rmtree(folder / "trial", ignore_errors=True)
    if fault or found["code"] or not found["count"]:
        raise RuntimeError(f"{command.name}: {fault or found}: {(folder / 'whole.log').read_text()}")
    return int(found["count"])


def _run(command: DamagedCommand, folder: Path) -> int:
    for name in ("cwd", "tmp"):
        (folder / name).mkdir()
    os.chdir(folder / "cwd")
    os.environ["TMPDIR"] = str(folder / "tmp")
    sys.argv = [command.name]
    return command.run(folder)


def run_damaged(
    command: DamagedCommand, whole: Path, expected: int, work: Path, seed: tuple[int, ...], damage: str | None = None
) -> Outcome:
    """Damages one file of an input and runs the command on it.

    Args:
        command: what to run.
        whole: the undamaged input.
        expected: its number of cases.
        work: an empty folder's path; removed afterwards.
        seed: chooses file and damage.
        damage: its name; None draws one.
    """
    folder = work / "case"
    work.mkdir(parents=True)
    name_file = work / "chosen.json"

    def body() -> dict:
        shutil.copytree(whole, folder, symlinks=True)
        target, chosen, named = _damage_one(command, folder, np.random.default_rng(seed), damage)
        relative = target.relative_to(folder).as_posix()
        name_file.write_text(json.dumps([chosen.name, relative]))
        before = _listing(folder)
        broken = is_broken(target)
        failed = ""
        try:
            code = _run(command, folder)
        except BaseException:
            traceback.print_exc()
            code, failed = -1, "traceback"
        changed = sorted(
            path
            for path, state in _listing(folder).items()
            if before.get(path) != state and path not in ("cwd", "tmp") and not path.startswith(OUTPUTS)
        )
        if command.name in STORES_IN_MODEL:
            changed = [path for path in changed if not path.endswith("dataset.json")]
        try:
            count, invalid = command.count(folder), ""
        except Exception as error:
            count, invalid = 0, f"{type(error).__name__}: {error}"
        partial = [path.name for path in folder.rglob(".partial*")]
        return {
            "code": code,
            "failed": failed,
            "changed": changed + partial,
            "count": count,
            "invalid": invalid,
            "named": sorted({path.name.encode("utf-8", "backslashreplace").decode() for path in (target, named)}),
            "case": target.parent.name if command.names_folder else "",
            "shared": command.is_shared(target.relative_to(folder)) or (command.pairs and chosen.name == "odd name"),
            "broken": broken,
        }

    found, fault, seconds, memory = run_forked(body, work / "log.txt")
    text = (work / "log.txt").read_text(encoding="utf-8", errors="replace") if (work / "log.txt").exists() else ""
    chosen, relative = json.loads(name_file.read_text()) if name_file.is_file() else ("?", "?")
    shutil.rmtree(work, ignore_errors=True)
    if not fault:
        verdict, fault = _judge(found, text, expected, command.lost)
        if memory > MEMORY:
            verdict, fault = BAD, "takes more than 4 GiB of memory"
    else:
        verdict = BAD
    return Outcome(
        command.name, chosen, relative, verdict, fault, found.get("code"), round(seconds, 2), memory, text[-3000:]
    )


def _damage_one(
    command: DamagedCommand, folder: Path, rng: np.random.Generator, name: str | None
) -> tuple[Path, Damage, Path]:
    """Damages a file; a damage that cannot be done to it is replaced by the next that is drawn."""
    files = [path for path in command.files(folder) if name is None or BY_NAME[name].suits(path)]
    by_ending: dict[str, list[Path]] = {}
    for path in files:
        by_ending.setdefault(path.suffix, []).append(path)
    for _ in range(50):
        group = by_ending[sorted(by_ending)[int(rng.integers(0, len(by_ending)))]]
        target = group[int(rng.integers(0, len(group)))]
        damage = BY_NAME[name] if name else draw_damage(target, rng)
        copy = target.with_name(".copy")
        shutil.copyfile(target, copy)
        try:
            named = damage.apply(target, rng) or target
        except Exception:
            if target.is_dir():
                target.rmdir()
            target.unlink(missing_ok=True)
            copy.rename(target)
            continue
        copy.unlink()
        return target, damage, named
    raise RuntimeError(f"{command.name}: no damage suits")


def _listing(folder: Path) -> dict[str, object]:
    """State of everything below a folder; links are not followed."""
    found: dict[str, object] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            state = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = 0 if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def _judge(found: dict, text: str, expected: int, lost: int) -> tuple[str, str]:
    code, count = found["code"], found["count"]
    named = [*found["named"], *(name.partition(".")[0] for name in found["named"]), found["case"]]
    named += [repr(name)[1:-1] for name in found["named"]]
    named += [name.rpartition("_")[0] for name in named if name.partition(".")[0][-5:] in ("_0000", "_0001")]
    if found["failed"] or "Traceback (most recent call last)" in text:
        return BAD, "traceback"
    if found["changed"]:
        return BAD, f"writes or changes what it should not: {', '.join(found['changed'][:3])}"
    if found["invalid"]:
        return BAD, f"output not valid: {found['invalid']}"
    if code == 0:
        if found["broken"]:
            return BAD, "does not notice that the file is broken"
        return (HARMLESS, "") if count >= expected else (BAD, f"says nothing of {expected - count} missing cases")
    if not any(name and name in text for name in named):
        return BAD, "does not name the file"
    if code == SOME_SKIPPED:
        if not expected - lost <= count <= expected:  # or an image that a damaged one was a copy of
            return BAD, f"{count} of {expected} cases done, exit code 3"
        return SKIPPED, ""
    if code == 1:
        if count:
            return BAD, f"exit code 1, but {count} cases as if all were well"
        return (ERROR, "") if found["shared"] else (BAD, "one bad case sinks the folder")
    return BAD, f"exit code {code}"


def as_json(outcome: Outcome) -> dict:
    """For a report."""
    return asdict(outcome)
