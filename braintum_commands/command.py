"""How every command runs: a supported nnU-Net, our classes registered with it, and errors as one line."""

import argparse
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from braintum.commands import registration
from braintum.commands.cuda_warnings import hide_cuda_warnings
from braintum.commands.errors import BraintumError, BraintumWarning, CommandError
from braintum.commands.version import check_nnunet_version

__all__ = ["DEBUG_VARIABLE", "EXIT_SOME_FAILED", "CommandError", "add_command", "ensure_registered", "run_command"]

DEBUG_VARIABLE = "braintum_debug"
"""Environment variable: at 1, errors of braintum's commands come with their traceback."""

EXIT_SOME_FAILED = 3
"""Some cases could not be done and are listed; the others are done."""

_EXIT_FAILURE = 1
_EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended

_COLLECTOR_THRESHOLDS = (20_000, 20)
"""Python's own make it look through torch's many objects again and again while they are imported."""

_already_said: set[str] = set()


def run_command(
    main: Callable[[list[str] | None], int | None],
    argv: Sequence[str] | None = None,
    *,
    needs_nnunet: bool = True,
) -> int:
    """Run the body of a command and turn what goes wrong into a message and an exit code.

    Args:
        main: the command's body; gets ``argv`` and returns an exit code, or None for success.
        argv: arguments without the command's name; None means those of the process.
        needs_nnunet: check nnU-Net's version and register with it before ``main`` runs.

    Returns:
        The exit code: 0 for success, 1 for bad input or a failed file operation, 2 for bad arguments (argparse), 130
        if interrupted. Errors of any other type are bugs and keep their traceback.
    """
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    for stream in (sys.stdout, sys.stderr):  # file names need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if needs_nnunet:
            check_nnunet_version()
            ensure_registered()
        with _warnings_as_lines():
            return main(None if argv is None else list(argv)) or 0
    except SystemExit as stop:  # argparse, after --help or bad arguments
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        return _fail(str(stop.code), _EXIT_FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted", _EXIT_INTERRUPTED)
    except (BraintumError, ValueError, OSError) as error:  # missing files and permissions are OSErrors
        return _fail(f"error: {_describe(error)}", _EXIT_FAILURE)


def add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A sub-command, with the same text in the list of commands and in its own help.

    Args:
        commands: of ``add_subparsers``.
        name: of the sub-command.
        text: what it does.
    """
    return commands.add_parser(name, help=text, description=text)


def ensure_registered() -> None:
    """Register with nnU-Net if something is missing, and say so in one line.

    Where nnU-Net's folder cannot be written to, one message a process says what works nevertheless and how to mend it,
    and the command goes on: not every command needs nnU-Net to find our classes.
    """
    current = registration.status()
    if current.complete:
        return
    try:
        written = registration.register()
    except (CommandError, OSError) as error:
        _say_once(
            f"braintum: could not register with nnU-Net ({_describe(error)}), so nnU-Net does not find its planners. "
            f"Trainers are found with: export nnUNet_extTrainer={registration.EXT_TRAINER_FOLDER} . To mend it, run "
            "braintum_register as a user who may write there, or install nnunetv2 and braintum in a virtual "
            "environment of your own."
        )
        return
    _say_once(
        f"braintum: registered with nnU-Net, {len(written)} small modules written into {current.folder} "
        "(undo with: braintum_register --undo)"
    )


def _describe(error: Exception) -> str:
    """Message of an error; without the error number that Python puts before it where the system reported one."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        target = f" -> {error.filename2}" if error.filename2 is not None else ""
        return f"{error.filename}{target}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show our own warnings as a line each; others as ever, unless they say what everybody knows."""
    with warnings.catch_warnings():
        hide_cuda_warnings()
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, BraintumWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_line
        warnings.simplefilter("always", BraintumWarning)
        yield


def _say_once(message: str) -> None:
    if message not in _already_said:
        _already_said.add(message)
        print(message, file=sys.stderr)


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exc()
    print(message, file=sys.stderr)
    return exit_code
