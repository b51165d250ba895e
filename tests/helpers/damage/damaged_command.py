"""A command that reads files of others, on a small whole input of which one file can be damaged."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from braintum.commands.command import run_command

ALL_SHARED = ("*.json", "*.csv", "*.pth")


@dataclass(frozen=True)
class DamagedCommand:
    """One command on one kind of input.

    Attributes:
        name: in tables.
        write: writes the whole input into a folder.
        run: runs the command on the input in a folder, output into its folder ``out``; returns the exit code.
        count: how many cases the output in a folder holds; raises ValueError where the output is not valid.
        targets: patterns of the files, relative to the folder, that may be damaged.
        shared: patterns of those that more than one case depends on: damage to them may end the command.
        names_folder: the folder of a file is as good as its name in a message: the files are slices of one volume.
        lost: cases at most that one damaged file may cost.
        pairs: every file has a counterpart, or a row in a table; to leave out what has none would make figures better
            than they are, or lose a patient, so the command refuses a renamed file.
    """

    name: str
    write: Callable[[Path], object]
    run: Callable[[Path], int]
    count: Callable[[Path], int]
    targets: Sequence[str] = ("in/*",)
    shared: Sequence[str] = ("*.csv", "*annotations_*.json", "*dataset.json")
    names_folder: bool = False
    lost: int = 1
    pairs: bool = False

    def files(self, folder: Path) -> list[Path]:
        """The files that may be damaged."""
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return [p for p in found if any(fnmatch.fnmatchcase(p.relative_to(folder).as_posix(), t) for t in self.targets)]

    def is_shared(self, path: Path) -> bool:
        """Whether more than one case depends on a file."""
        return any(fnmatch.fnmatchcase(path.as_posix(), pattern) for pattern in self.shared)


def call(body: Callable, *arguments: object) -> int:
    """Runs the body of a command as its console script does; returns the exit code."""
    return run_command(body, [str(argument) for argument in arguments], needs_nnunet=False)
