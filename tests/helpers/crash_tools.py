"""Processes that kill themselves at a chosen moment, for the tests of crashes and of several processes."""

import fnmatch
import os
import signal
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from braintum.inference.prediction.preprocessing import preprocess_for_all


def start(run: Callable[[], Any], name: str = "", number: int = 0) -> int:
    """Run something in a forked process, the id of which is returned.

    Args:
        run: what to run.
        name: pattern of a file's name; empty to let the process live.
        number: the process kills itself just before such a file takes its name for the ``number``-th time, from 1.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        if name:
            times, replace = count(1), os.replace

            def replace_or_die(source: Any, target: Any) -> None:
                if fnmatch.fnmatch(os.path.basename(target), name) and next(times) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            os.replace = replace_or_die
        run()
        code = 0
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """The exit code; negative: the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_before(name: str, number: int, run: Callable[[], Any]) -> None:
    """Run something that is killed before a file takes its name, see :func:`start`."""
    assert wait(start(run, name, number)) == -signal.SIGKILL, f"there was no file {number} of the name {name}"


def copy_or_die(files: tuple[Path, Path]) -> None:
    """Copies a file to another; the process is killed, as for want of memory, where the first is called ``fatal``."""
    source, target = files
    if source.name == "fatal":
        os.kill(os.getpid(), signal.SIGKILL)
    target.write_bytes(source.read_bytes())


def preprocess_or_die(files: Sequence[str], models: Sequence[Any]) -> Any:
    """Preprocessing of the prediction; the process is killed, as for want of memory, with case_02."""
    if "case_02" in files[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return preprocess_for_all(files, models)


def visible_files(folder: Path) -> dict[str, bytes]:
    """Contents by name, apart from what lies under a hidden name."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }
