"""The key list of pseudonyms: which case, patient and slice each stands for, and results named by them again.

It lies beside the salt, readable for its owner only, and never in a data set: whoever has it knows the patients.
"""

import csv
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from braintum.conversion.files.atomic import atomic_path, copy_atomic
from braintum.conversion.files.folders import walk

KEY_COLUMNS = ("dataset", "case_pseudonym", "case", "patient_pseudonym", "patient")
FURTHER_COLUMNS = ("date", "plane", "slice", "position", "source")
"""Of `cases.csv`: where in the source a case comes from."""
_PSEUDONYM = re.compile(r"(?<![0-9a-f])(case_)?[0-9a-f]{16}(?![0-9a-f])")
_ESCAPES: dict[str, Callable[[str], str]] = {
    ".json": lambda text: json.dumps(text)[1:-1],
    ".html": html.escape,
    ".txt": str,
    ".tex": str,
    ".md": str,
}
"""Ending -> how a name is written there; CSV files are handled cell by cell, and others copied as they are."""


def key_file(salt_file: str | os.PathLike[str]) -> Path:
    """Returns where the key list of a salt lies."""
    salt_file = Path(salt_file)
    return salt_file.with_name(f"{salt_file.name}.keys.csv")


def write_keys(path: Path, dataset: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Puts a data set's rows into a key list, in place of earlier ones of that data set; others stay.

    Args:
        path: of the list; is made if it does not exist.
        dataset: name of the data set's folder.
        rows: with `KEY_COLUMNS` but the first, and any of `FURTHER_COLUMNS`.
    """
    earlier = [row for row in _read_rows(path) if row["dataset"] != dataset] if path.exists() else []
    with atomic_path(path, durable=True) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, (*KEY_COLUMNS, *FURTHER_COLUMNS), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*earlier, *({"dataset": dataset, **row} for row in rows)])


def read_keys(path: Path) -> dict[str, str]:
    """Reads a key list.

    Returns:
        Pseudonym of a case or patient -> its name.

    Raises:
        ValueError: it is no key list.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such key list; a conversion with --pseudonymise writes it beside the salt")
    names = {row[f"{kind}_pseudonym"]: row[kind] for row in _read_rows(path) for kind in ("case", "patient")}
    return {pseudonym: name for pseudonym, name in names.items() if pseudonym}


def _read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in KEY_COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: no key list, it has no column {', '.join(missing)}; give SALT_FILE.keys.csv")
        return list(reader)


def restore_names(results: Path, target: Path, names: Mapping[str, str]) -> tuple[int, set[str]]:
    """Copies results with the names that pseudonyms stand for, in file names, tables, JSON and reports.

    Args:
        results: folder of masks, `classes.csv`, … of pseudonymised cases.
        target: the new folder; is made, completely or not at all.
        names: see `read_keys`.

    Returns:
        The number of files, and the pseudonyms of cases that are not in the list.

    Raises:
        FileExistsError: the target is there already.
        FileNotFoundError: there are no results.
        ValueError: two files would have one name.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"{results}: no such folder; give the folder of results")
    if target.exists():
        raise FileExistsError(f"{target}: is there already; choose another folder with -o")
    unknown: set[str] = set()

    def name_of(match: re.Match[str]) -> str:
        if match[1] and match[0] not in names:
            unknown.add(match[0])
        return names.get(match[0], match[0])

    files = [path for path in walk(results) if path.is_file()]
    partial = target.with_name(f".new_{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for path in files:
            out = partial / _PSEUDONYM.sub(name_of, path.relative_to(results).as_posix())
            if out.exists():
                raise ValueError(f"{path}: another file is called {out.name} as well; map the data sets one by one")
            out.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, out, name_of)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(files), unknown


def _copy(path: Path, out: Path, name_of: Callable[[re.Match[str]], str]) -> None:
    ending = path.suffix.lower()
    if ending == ".csv":
        with open(path, encoding="utf-8", newline="") as source, open(out, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([_PSEUDONYM.sub(name_of, cell) for cell in row] for row in csv.reader(source))
    elif ending in _ESCAPES:
        escape = _ESCAPES[ending]
        text = path.read_text(encoding="utf-8")
        out.write_text(_PSEUDONYM.sub(lambda match: escape(name_of(match)), text), encoding="utf-8", newline="\n")
    else:
        copy_atomic(path, out)
