"""Tiny data sets in the sources' original layouts, shared by several test files."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.sources import figshare
from braintum.conversion.sources.phantoms import write_cvind, write_mat

FOLDER = "brainTumorDataPublic_1-766"
NAME = "Dataset511_Figshare"


def request(source: Path, raw: Path, **options: Any) -> ConversionRequest:
    """A conversion of a Figshare source to `NAME`, in this process."""
    return ConversionRequest(source, raw, 511, options.pop("name", "Figshare"), n_processes=1, **options)


def blob_slice(number: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and a mask that no transposition or flip maps onto itself: wide, upper right."""
    image = np.random.default_rng(number).integers(0, 900, (size, size)).astype(np.int16)
    mask = np.zeros((size, size), np.uint8)
    mask[4:10, size // 2 : size - 6] = 1
    image[mask == 1] += 1000
    return image, mask


def write_source(
    folder: Path, n_patients: int = 6, slices_per_patient: int = 2, folds: int = 3, with_cvind: bool = True
) -> Path:
    """Writes a Figshare source of small slices: label and fold depend on the patient; returns the folder."""
    target = folder / FOLDER
    target.mkdir(parents=True)
    fold_numbers = []
    for number in range(1, n_patients * slices_per_patient + 1):
        patient = (number - 1) // slices_per_patient
        image, mask = blob_slice(number)
        write_mat(target / f"{number}.mat", image, mask, patient % 3 + 1, f"P{patient:03d}")
        fold_numbers.append(patient % folds + 1)
    if with_cvind:
        write_cvind(folder / "cvind.mat", fold_numbers)
    return folder


def change(path: Path, name: str, value: Any) -> None:
    """Replaces one field of `cjdata`; None removes it."""
    with h5py.File(path, "r+") as file:
        del file["cjdata"][name]
        if value is not None:
            file["cjdata"][name] = value


def digest(folder: Path) -> dict[str, str]:
    """Returns relative path -> SHA-256 of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _remove_label_and_pid(path: Path) -> None:
    change(path, "label", None)
    change(path, "PID", None)


def _nan_image(path: Path) -> None:
    image = blob_slice(1)[0].astype(float)
    image[3, 3] = np.nan
    change(path, "image", image)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "not a complete MATLAB",
    ),
    "empty": (lambda path: path.write_bytes(b""), "not a complete MATLAB"),
    "version 5": (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(2000)), "not a complete MATLAB"),
    "no struct": (lambda path: write_cvind(path, [1]), "has no struct cjdata"),
    "missing fields": (
        _remove_label_and_pid,
        "cjdata has no field PID, label",
    ),
    "label 4": (lambda path: change(path, "label", np.array([[4.0]])), "label is 4, not 1, 2 or 3"),
    "label 1.5": (lambda path: change(path, "label", np.array([[1.5]])), "label is 1.5, not 1, 2 or 3"),
    "two labels": (lambda path: change(path, "label", np.array([[1.0, 2.0]])), "label is an array of shape"),
    "empty PID": (lambda path: change(path, "PID", np.zeros(2, np.uint64)), "PID is empty"),
    "sizes": (lambda path: change(path, "tumorMask", np.ones((64, 63), np.uint8)), "shape (64, 63), image (64, 64)"),
    "volume": (lambda path: change(path, "image", np.ones((4, 64, 64), np.int16)), "not two dimensions"),
    "NaN": (_nan_image, "NaN or infinity"),
    "fractions": (lambda path: change(path, "image", np.full((64, 64), 0.5)), "holds fractions"),
    "range": (lambda path: change(path, "image", np.full((64, 64), 40000, np.uint16)), "do not fit int16"),
    "mask values": (lambda path: change(path, "tumorMask", np.full((64, 64), 255, np.uint8)), "other than 0 and 1"),
    "empty mask": (lambda path: change(path, "tumorMask", np.zeros((64, 64), np.uint8)), "tumorMask is empty"),
}
"""Name of a fault -> what brings it into an `N.mat`, and words of the message about it."""


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, n_slices: int, error: type[BaseException] | BaseException = KeyboardInterrupt
) -> list[str]:
    """Makes the conversion stop within the write of a slice: its image is written, its label map is not."""
    write = figshare.sitk.WriteImage
    calls: list[str] = []

    def write_or_stop(image: Any, path: str, **options: Any) -> None:
        calls.append(path)
        if len(calls) > 2 * n_slices + 1:
            Path(path).write_bytes(b"half")
            raise error
        write(image, path, **options)

    monkeypatch.setattr(figshare.sitk, "WriteImage", write_or_stop)
    return calls


def fail_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, error: type[BaseException] | BaseException
) -> list[tuple]:
    """Makes a function of a module fail at one call; returns the arguments of all calls.

    Args:
        monkeypatch: of the test.
        owner: module that the function is looked up in.
        name: of the function.
        number: of the call that fails, from 1; 0: none does.
        error: that the call raises.
    """
    function = getattr(owner, name)
    calls: list[tuple] = []

    def call_or_fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return function(*arguments)

    monkeypatch.setattr(owner, name, call_or_fail)
    return calls


def slow_case(number: int) -> int:
    """Stands for the work on one case, in a worker process."""
    time.sleep(0.02)
    return number
