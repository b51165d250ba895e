"""Files that are to be predicted, and those that were not: quick to import, so that commands can look before they load.

A mistyped folder is to be told at once, not after torch was imported and a model loaded.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from braintum.conversion.building.raw_dataset import LEFT_OUT_FILE
from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.files.folders import unused_paths
from braintum.conversion.files.json_files import read_json, read_json_object

__all__ = [
    "LEFT_OUT_FILE",
    "check_folder",
    "check_input",
    "check_output",
    "find_cases",
    "unused_input",
    "write_left_out",
]


def check_folder(folder: Path) -> None:
    """Refuse an input folder that is none, or may not be read.

    Raises:
        FileNotFoundError: there is none.
        NotADirectoryError: it is a file.
        PermissionError: it may not be read.
    """
    if not folder.exists():
        raise FileNotFoundError(f"the input folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"the input {folder} is a file; give the folder that holds it")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"the input folder {folder} may not be read; change its permissions")


def check_output(folder: Path, source: Path) -> None:
    """Refuse an output folder that is the input, or cannot be made, or written to.

    Raises:
        ValueError: it is the input.
        NotADirectoryError: it, or a folder above it, is a file.
        PermissionError: it, or what it would be made in, may not be written to.
    """
    if folder.resolve() == source.resolve():
        raise ValueError(f"input and output are the same folder, {source}; choose another output folder")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file; choose another output folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} may not be written to; choose another output folder")


def check_input(folder: Path, model_folder: Path) -> None:
    """Refuse an input folder without a file of the kind that a model takes, see :func:`find_cases`.

    What is wrong with the model itself is left to those who load it.
    """
    check_folder(folder)
    try:
        dataset_json = read_json_object(model_folder / "dataset.json")
        channels = dataset_json.get("channel_names") or dataset_json["modality"]
        ending, num_channels = str(dataset_json["file_ending"]), len(channels)
    except (OSError, ValueError, KeyError, TypeError):
        return
    find_cases(folder, ending, num_channels)


def find_cases(folder: Path, file_ending: str, num_channels: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Input files by case, and the cases whose files are not as they should be.

    Args:
        folder: files named ``CASE_0000<ending>``, ``CASE_0001<ending>``, …
        file_ending: of the training data, such as ``.nii.gz``.
        num_channels: that the model takes.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
        NotADirectoryError: it is a file.
        PermissionError: it may not be read.
    """
    check_folder(folder)
    names = sorted(entry.name for entry in folder.glob(f"[!.]*{file_ending}"))
    if not names:
        there = sorted(entry.name for entry in folder.iterdir())
        listed = f"but {', '.join(there[:3])}{', …' if len(there) > 3 else ''}" if there else "it is empty"
        raise FileNotFoundError(
            f"{folder} holds no file *{file_ending}, {listed}; the model was trained on files named "
            f"CASE_0000{file_ending}: give a folder of such, converted as the training data was"
        )
    channels: dict[str, dict[int, str]] = {}
    failed: dict[str, str] = {}
    for name in names:
        match = re.fullmatch(r"(.+)_(\d{4})", name.removesuffix(file_ending))
        if match is None:
            failed[name] = f"{folder / name}: the name lacks the channel; rename it to CASE_0000{file_ending}"
        else:
            channels.setdefault(match[1], {})[int(match[2])] = str(folder / name)
    cases = {}
    for case, files in channels.items():
        if sorted(files) == list(range(num_channels)):
            cases[case] = [files[channel] for channel in sorted(files)]
        else:
            found = ", ".join(f"{channel:04d}" for channel in sorted(files))
            failed[case] = (
                f"{folder / case}_*{file_ending}: the model takes {num_channels} channel(s), 0000 to "
                f"{num_channels - 1:04d}, found {found}; supply all of them and no others"
            )
    return cases, failed


def unused_input(folder: Path, used: Iterable[Path], output: Path, not_needed: Sequence[str] = ()) -> dict[str, str]:
    """Images below an input folder that no case is made of, by the rule of the conversion.

    Args:
        folder: of the input.
        used: files of the cases, and files that are known to be wrong.
        output: may lie in it.
        not_needed: patterns, see :func:`braintum.conversion.files.folders.unused_paths`.

    Returns:
        Path within the folder → what to do.
    """
    unused = unused_paths(folder, [*used, output], not_needed=not_needed)
    return {path.relative_to(folder).as_posix(): f"{path}: {fault}" for path, fault in unused.items()}


def write_left_out(file: Path, failed: Mapping[str, str], source: Path, others: Iterable[str] | None = ()) -> None:
    """Write ``left_out.json``: case → what is wrong with it; without any, remove an earlier one.

    Args:
        file: to write.
        failed: of this run.
        source: folder of the input, which names and sentences are to hold no longer.
        others: cases of other runs that share the output, whose entries are kept; None keeps all.
    """
    prefix = f"{source}{os.sep}"
    entries = {name.removeprefix(prefix): fault.replace(prefix, "") for name, fault in failed.items()}
    try:
        earlier = read_json(file, "it is written anew")
    except (FileNotFoundError, ValueError):
        earlier = None
    if isinstance(earlier, dict):
        entries |= {name: earlier[name] for name in (earlier if others is None else others) if name in earlier}
    if entries:
        write_json_atomic(file, dict(sorted(entries.items())))
    else:
        file.unlink(missing_ok=True)
