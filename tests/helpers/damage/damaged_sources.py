"""Commands that read images of others: conversion and audit."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from damaged_command import ALL_SHARED, DamagedCommand, call
from natural_image_data import save, slice_image, write_br35h, write_brisc, write_kaggle4
from nnunet_runs import write_dataset
from phantom_data import write_source
from volume_data import mask_array, volume_array, write_brats_case, write_dicom_series, write_lgg_source
from volume_data import write_volume_file as write_volume

from braintum.conversion import audit_cli, cli
from braintum.conversion.building.image_files import read_array


def _convert(kind: str, *options: str) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        os.environ |= {"nnUNet_raw": str(folder / "out")}
        return call(cli._convert, kind, folder / "in", "-d", 500, "--name", "Damaged", "-np", 1, *options)

    return run


def _count_dataset(folder: Path, raw: str = "out") -> int:
    """Cases of a converted data set; all their files have to be readable, finite and of one size."""
    dataset = folder / raw / "Dataset500_Damaged"
    if not (dataset / "dataset.json").is_file():
        return 0
    if (dataset / "conversion_in_progress.json").exists():
        raise ValueError("a data set that is complete and is not")
    content = json.loads((dataset / "dataset.json").read_text())
    ending, channels = content["file_ending"], len(content["channel_names"])
    with open(dataset / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        part = "Ts" if row["split"] == "test" else "Tr"
        files = [dataset / f"images{part}" / f"{row['case']}_{channel:04d}{ending}" for channel in range(channels)]
        label = dataset / f"labels{part}" / f"{row['case']}{ending}"
        arrays = [read_array(file) for file in (*files, *([label] if label.exists() or part == "Tr" else []))]
        if len({array.shape for array in arrays}) > 1 or not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(f"case {row['case']} is not valid")
    n_images = sum(len(list(dataset.glob(f"images{part}/*"))) for part in ("Tr", "Ts"))
    if n_images != channels * len(rows):
        raise ValueError(f"{n_images} images of {len(rows)} cases")
    splits = json.loads((dataset / "splits_final.json").read_text())
    named = {name for split in splits for names in split.values() for name in names}
    if named != {row["case"] for row in rows if row["split"] != "test"}:
        raise ValueError("splits of other cases")
    return len(rows)


def _write_brats(folder: Path) -> None:
    for number in range(4):
        write_brats_case(folder / "in", f"BraTS2021_0000{number}", mask_array(), seed=number)


def _write_lgg(folder: Path) -> None:
    rows = {f"TCGA_CS_494{number}_19960909": ("1", str(1 + number % 2)) for number in range(3)}
    write_lgg_source(folder / "in", rows)


def _write_folder(ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        lines = ["patient,class"]
        for number in range(4):
            patient = folder / "in" / f"P{number}"
            for channel, seed in (("t1c", number), ("flair", 10 + number)):
                if ending == ".dcm":
                    array = volume_array(seed)
                    write_dicom_series(patient / channel, array, series=f"{seed + 1}")
                else:
                    write_volume(patient / f"{channel}{ending}", volume_array(seed))
            write_volume(patient / f"mask{'.nrrd' if ending == '.dcm' else ending}", mask_array((1, 1)))
            lines.append(f"P{number},{('glioma', 'meningioma')[number % 2]}")
        (folder / "in" / "table.csv").write_text("\n".join(lines) + "\n")

    return write


_CHANNELS = ("--channel", "T1ce=*t1c*", "--channel", "FLAIR=*flair*", "--mask", "*mask*", "--table", "table.csv")


def _write_raw(*endings: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number, ending in enumerate(endings):
            write_dataset(folder / "in", 7 + number, num_cases=4, file_ending=ending)

    return write


def _combine(folder: Path) -> int:
    # `combine` reads from nnUNet_raw and writes there: the new data set is the output
    os.environ |= {"nnUNet_raw": str(folder / "in")}
    return call(cli._convert, "combine", 7, 8, "-d", 500, "--name", "Damaged", "-np", 1)


def _audit(*targets: str) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        paths = [folder / target for target in targets]
        return call(audit_cli._audit, *paths, "-o", folder / "out", "-np", 1)

    return run


def _write_audit_folders(folder: Path) -> None:
    for seed in range(6):
        side, name = ("train", "test")[seed % 2], f"image{seed}"
        save(folder / "in" / side / f"{name}.jpg", slice_image(seed))
        save(folder / "in" / side / f"{name}.png", slice_image(seed + 50), content="PNG")
        save(folder / "in" / side / f"{name}.tif", slice_image(seed + 90), content="TIFF")
    for ending in (".nii.gz", ".nrrd"):
        for seed in range(2):
            write_volume(folder / "in" / ("train", "test")[seed] / f"volume{seed}{ending}", volume_array(seed))


def _count_audited(folder: Path) -> int:
    """Images that an audit could read."""
    file = folder / "out" / "audit.json"
    if not file.is_file():
        return 0
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["images"] - len(content["unreadable"])


SOURCES = (
    DamagedCommand(
        "figshare", lambda p: write_source(p / "in"), _convert("figshare"), _count_dataset, shared=("*cvind.mat",)
    ),
    DamagedCommand("brisc", lambda p: write_brisc(p / "in"), _convert("brisc"), _count_dataset, lost=2),
    DamagedCommand("br35h", lambda p: write_br35h(p / "in"), _convert("br35h"), _count_dataset),
    DamagedCommand("kaggle4", lambda p: write_kaggle4(p / "in"), _convert("kaggle4"), _count_dataset),
    DamagedCommand("lgg", _write_lgg, _convert("lgg"), _count_dataset, names_folder=True),
    DamagedCommand("lgg slices", _write_lgg, _convert("lgg", "--slices"), _count_dataset, names_folder=True, lost=11),
    DamagedCommand("brats", _write_brats, _convert("brats"), _count_dataset),
    DamagedCommand("folder, NIfTI", _write_folder(".nii.gz"), _convert("folder", *_CHANNELS), _count_dataset),
    DamagedCommand("folder, NRRD", _write_folder(".nrrd"), _convert("folder", *_CHANNELS), _count_dataset),
    DamagedCommand(
        "folder, DICOM", _write_folder(".dcm"), _convert("folder", *_CHANNELS), _count_dataset, names_folder=True
    ),
    DamagedCommand("combine", _write_raw(".nii.gz", ".nii.gz"), _combine, lambda p: _count_dataset(p, "in")),
    DamagedCommand("combine, PNG", _write_raw(".png", ".png"), _combine, lambda p: _count_dataset(p, "in")),
    DamagedCommand(
        "audit of a data set", _write_raw(".nii.gz"), _audit("in/Dataset007_Tiny"), _count_audited, shared=ALL_SHARED
    ),
    DamagedCommand("audit of folders", _write_audit_folders, _audit("in/train", "in/test"), _count_audited),
)
