"""What the folder of a run holds against the folder of an uninterrupted one."""

import json
from pathlib import Path

import SimpleITK


def visible_files(folder: Path) -> dict[str, Path]:
    """Files that somebody who lists folders sees: no part of their path begins with a dot."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        relative.as_posix(): path
        for relative, path in sorted(found.items())
        if not any(part.startswith(".") for part in relative.parts)
    }


def differing_files(
    folder: Path,
    reference: Path,
    completed: bool,
    allowed: frozenset[str] | set[str] = frozenset(),
    suffixes: set[str] | None = None,
) -> list[str]:
    """Files that are not those of the uninterrupted run, byte for byte; missing ones too, where the run was completed.

    Args:
        folder: of the run.
        reference: of the uninterrupted one.
        completed: whether the run was.
        allowed: names of files that may be there or differ.
        suffixes: of the files to look at; None for all.
    """

    def wanted(name: str) -> bool:
        return Path(name).name not in allowed and (suffixes is None or any(map(name.endswith, suffixes)))

    found, expected = visible_files(folder), visible_files(reference)
    faults = [f"{name} is no file of an uninterrupted run" for name in found if name not in expected and wanted(name)]
    for name, path in expected.items():
        if not wanted(name):
            continue
        if name not in found:
            faults += [f"{name} is missing"] if completed else []
        elif found[name].read_bytes() != path.read_bytes():
            faults.append(f"{name} differs")
    if completed:
        left = [str(path.relative_to(folder)) for path in folder.rglob(".*") if not path.name.startswith(".partial-")]
        faults += [f"{name} is left behind" for name in left]
    return faults


def differing_predictions(folder: Path, reference: Path, completed: bool) -> list[str]:
    """Masks and class probabilities that differ by more than rounding can explain."""
    faults = []
    for name, path in visible_files(reference).items():
        if not (folder / name).is_file():
            faults += [f"{name} is missing"] if completed else []
        elif name.endswith(".nii.gz"):
            masks = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in (folder / name, path)]
            if (masks[0] != masks[1]).mean() > 1e-3:
                faults.append(f"{name} differs")
        elif name.startswith("classes/"):
            found, expected = (json.loads(file.read_text())["probabilities"] for file in (folder / name, path))
            if any(abs(found[key] - expected[key]) > 1e-4 for key in expected):
                faults.append(f"{name} differs")
    return faults
