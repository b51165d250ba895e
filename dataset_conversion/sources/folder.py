"""A hospital's own data: a folder a patient with volumes of any number of modalities, masks, and a table of diagnoses.

    SOURCE/
      P001/ t1c.nii.gz  flair.nii.gz  mask.nii.gz          NIfTI, NRRD or MetaImage files,
      P002/ T1C/ 0001.dcm …  FLAIR/ 0001.dcm …  mask.nrrd  or a folder a DICOM series, in any nesting
      cases.csv                                            patient,class

Files are chosen by patterns with `*` and `?`, in upper or lower case alike: `--channel T1ce='*t1c*'` matches
`t1c.nii.gz` as well as the series' folder `T1C`; a pattern with a slash has to match the path within the patient's
folder. Files that match the mask's pattern are no channels. Where names say nothing, DICOM series are chosen by their
descriptions, and a patient's folder may hold a folder an examination: see `examinations`. A mask may also be a DICOM
segmentation or structure set, whose segments' numbers are its values. All volumes of an examination have to lie on one
grid (`volumes.geometry_problems`), unless `--resample-to` names the channel on whose grid they are brought
(`resampling`).

A case is named after its folders below the source's, and its patient is the table's (`--patient-column`); where one
patient has several folders, `--case-column` names the column with the folders, or `--date-column` the one with dates
that the folders' names hold. A folder that is not in the table has an unknown class. Masks are binary (every value but
0 is tumour), or hold the values that `--labels` names. A patient without a mask learns the class only (ignore label),
unless the class is the negative one (`--negative-class`, or a word for healthy): then an empty mask is the truth. New
patients, with neither mask nor class, are converted with `--for-prediction`. A column of parts (`--split-column`) sets
cases aside for a test, and others, from elsewhere, for an external one.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.building.examinations import find_examinations
from braintum.conversion.building.raw_dataset import DATASET_FILE, ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.resampling import Resampling, read_resampled
from braintum.conversion.building.slices import (
    PLANES,
    SliceChoice,
    add_orientation_argument,
    add_rescaling_argument,
)
from braintum.conversion.building.source_tables import Diagnoses, read_diagnoses
from braintum.conversion.building.volume_cases import LoadedVolume, Target, convert_volumes, with_ignore_label
from braintum.conversion.building.volume_reading import Volume, dicom_files, files_of, read_case
from braintum.conversion.files.folders import subfolders
from braintum.conversion.files.json_files import read_dataset_json
from braintum.conversion.files.volumes import VolumeError
from braintum.conversion.format.cases import Case
from braintum.conversion.format.class_names import canonical_name, means_healthy, unified_schema
from braintum.conversion.format.pairs import named_pairs

KIND = "folder"
DEFAULT_NAME = "BrainTumours"
DESCRIPTION = "a folder a patient of NIfTI, NRRD or DICOM series, with masks and a table of diagnoses"

BINARY_LABELS = {"tumour": 1}


@dataclass(frozen=True)
class FolderCase:
    """One patient's folder.

    Attributes:
        case: what is known without reading.
        channels: file or DICOM folder of each channel.
        mask: likewise; None where there is none.
        labels: value in the mask -> our label; None: every value but 0 is label 1.
        is_healthy: the class is the negative one.
        resampling: how the volumes come on one grid; None: they have to lie on it.
    """

    case: Case
    channels: tuple[Volume, ...]
    mask: Volume | None
    labels: tuple[tuple[int, int], ...] | None
    is_healthy: bool = False
    resampling: Resampling | None = None

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask, or the class says that an empty one is the truth."""
        return self.mask is not None or self.is_healthy

    def files(self) -> list[Path]:
        """Returns all files of the channels and the mask."""
        return [file for path in (*self.channels, *([self.mask] if self.mask else [])) for file in files_of(path)]

    def load(self) -> LoadedVolume:
        """Reads and checks the volumes; raises `VolumeError`."""
        remarks: tuple[str, ...] = ()
        found = None
        if self.resampling is None:
            images, mask = read_case(self.channels, self.mask, self._map_labels)
        else:
            found = read_resampled(self.channels, self.mask, self._map_labels, self.resampling)
            images, mask, remarks = found.channels, found.mask, found.remarks
        if self.mask is None:
            if self.has_mask:
                remarks += (f"no mask: an empty one is written, the class is {self.case.tumour_class}",)
                mask = np.zeros(images[0].GetSize()[::-1], np.uint8)
            elif self.case.split == "train":
                remarks += ("no mask: learns the class only",)
        if found is None or not found.before:
            return LoadedVolume(images, mask, remarks)
        source = replace(self, resampling=found.resampling)
        return LoadedVolume(images, mask, remarks, source=source, registered=found)

    def _map_labels(self, array: np.ndarray, path: Volume) -> np.ndarray:
        if self.labels is None:
            return (array != 0).astype(np.uint8)
        known = {0: 0, **dict(self.labels)}
        values, positions = np.unique(array, return_inverse=True)
        unexpected = [value for value in values.tolist() if value not in known]
        if unexpected:
            raise VolumeError(
                f"{path}: holds {', '.join(map(str, unexpected[:5]))}, but --labels names "
                f"{', '.join(str(value) for value in known if value)} only; name it there, or correct the mask"
            )
        return np.array([known[value] for value in values.tolist()], np.uint8)[positions].reshape(array.shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    parser.add_argument(
        "--channel",
        action="append",
        required=True,
        metavar="NAME=PATTERN",
        help="a modality and its files, such as T1ce='*t1c*'; repeat it for more, in the order of the channels",
    )
    parser.add_argument("--mask", metavar="PATTERN", help="the masks' files, such as '*seg*'; leave it out for none")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME=VALUE",
        help="the values in the masks, such as core=1 oedema=2; without it every value but 0 is tumour",
    )
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="table with a row a patient or examination: CSV or Excel (.xlsx)"
    )
    parser.add_argument(
        "--patient-column", default="patient", metavar="NAME", help="its column of patients (default: %(default)s)"
    )
    parser.add_argument(
        "--class-column", default="class", metavar="NAME", help="its column of diagnoses (default: %(default)s)"
    )
    parser.add_argument(
        "--case-column", metavar="NAME", help="its column of folder names (default: the patients' column)"
    )
    parser.add_argument(
        "--negative-class",
        metavar="NAME",
        help="the healthy class (default: the one called no_tumor, healthy, control, gesund, sain, sano, …)",
    )
    parser.add_argument(
        "--date-column",
        metavar="NAME",
        help="its column of dates, where a patient's examinations lie in folders that name the date",
    )
    parser.add_argument(
        "--split-column",
        metavar="NAME",
        help="its column of parts: train (or blank), test, and external, cases from elsewhere; test goes to imagesTs, "
        "external to imagesExternal, and neither is trained on",
    )
    parser.add_argument(
        "--for-prediction",
        type=int,
        nargs="?",
        const=0,
        metavar="ID",
        help="new patients to predict: all go to imagesTs, with or without mask and class; with the number of the data "
        "set that the model was trained on, channels are put into its order",
    )
    parser.add_argument(
        "--representative-slices",
        type=int,
        metavar="N",
        help="2-D cases: N slices a patient, spread over the tumour's extent, or over the volume where there is none",
    )
    parser.add_argument(
        "--plane",
        choices=("auto", *PLANES),
        default="auto",
        help="the plane of slices (default: the one a volume was acquired in; axial if its voxels are about cubic)",
    )
    add_rescaling_argument(parser)
    add_orientation_argument(parser)
    parser.add_argument(
        "--resample-to",
        metavar="CHANNEL",
        help="where channels lie on grids of their own: bring all, and the mask, on the grid of this one, by the "
        "headers (images linearly, the mask by the nearest neighbour)",
    )
    parser.add_argument(
        "--register",
        action="store_true",
        help="with --resample-to: also align the other channels with it (rigid, mutual information), for patients who "
        "moved between two sequences; look at the pictures that are written beside the data set",
    )


def convert(
    request: ConversionRequest,
    channel: Sequence[str] = (),
    mask: str | None = None,
    labels: Sequence[str] | None = None,
    table: Path | None = None,
    patient_column: str = "patient",
    class_column: str = "class",
    case_column: str | None = None,
    date_column: str | None = None,
    split_column: str | None = None,
    negative_class: str | None = None,
    representative_slices: int | None = None,
    plane: str = "auto",
    rescale_volumes: bool = False,
    keep_orientation: bool = False,
    for_prediction: int | None = None,
    resample_to: str | None = None,
    register: bool = False,
) -> ConversionResult:
    """Converts the folders to NIfTI in nnU-Net's raw layout, or only checks them (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        channel: `NAME=PATTERN`, one a channel, at least one.
        mask: pattern of the masks; None: there are none.
        labels: `NAME=VALUE`, one a label; None: masks are binary.
        table: CSV or Excel file with patients and diagnoses, relative to the source folder or to the working directory;
            None: no classes.
        patient_column: the table's column of patients.
        class_column: the table's column of diagnoses.
        case_column: the table's column of folder names, where these are not the patients.
        date_column: the table's column of dates, where patients have several examinations.
        split_column: the table's column of parts; None: all cases are trained on.
        negative_class: the healthy class; None: the one whose name says so.
        representative_slices: number of 2-D cases a patient; None for volumes.
        plane: `auto` or the plane of the slices.
        rescale_volumes: bring volumes to [0, 1] before they are sliced.
        keep_orientation: let nnU-Net read volumes as their files store them.
        for_prediction: None for training; otherwise all cases go to imagesTs, with the channels in the order of this
            data set, or in the given one at 0.
        resample_to: the channel on whose grid all volumes of a case are brought; None: they have to lie on one.
        register: also align the other channels with it.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no patients' folders in the source folder, or no table.
        ValueError: an option is not valid.
    """
    patterns = named_pairs(channel, "--channel", "T1ce='*t1c*'")
    if not patterns:
        raise ValueError("no channels; name at least one, for example --channel T1ce='*t1c*'")
    label_values = None if labels is None else _label_values(labels)
    if for_prediction:
        patterns = _in_order_of(request, for_prediction, patterns)
    if labels is not None and mask is None:
        raise ValueError("--labels needs --mask: the pattern of the masks' files; add it")
    if split_column is not None and (table is None or for_prediction is not None):
        raise ValueError("--split-column needs --table, and has no meaning with --for-prediction: correct the options")
    if register and resample_to is None:
        raise ValueError("--register needs --resample-to: the channel with which the others are aligned; add it")
    resampling = None if resample_to is None else Resampling.to(resample_to, tuple(patterns), register)
    choice = None
    if representative_slices is not None:
        choice = SliceChoice("representative", count=representative_slices)
    options = {
        "channel": list(channel),
        "mask": mask,
        "labels": None if labels is None else list(labels),
        "table": None if table is None else str(table),
        "columns": [patient_column, class_column, case_column, date_column],
        **({} if split_column is None else {"split_column": split_column}),
        **({} if negative_class is None else {"negative_class": negative_class}),
        "representative_slices": representative_slices,
        "plane": plane,
        **({"rescale_volumes": True} if rescale_volumes else {}),
        "keep_orientation": keep_orientation,
        "for_prediction": for_prediction,
        **({} if resample_to is None else {"resample_to": resample_to, "register": register}),
    }
    dataset = RawDataset.open(request, KIND, options)
    diagnoses = None
    if table is not None:
        path = next((p for p in (request.source / table, table) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{request.source / table}: no such table, nor {table}; correct --table")
        diagnoses = read_diagnoses(
            path, patient_column, class_column, case_column or patient_column, date_column, split_column
        )
    sources, problems, notes = find_cases(request.source, patterns, mask, label_values, diagnoses)
    classes = {source.case.tumour_class for source in sources} - {""}
    if for_prediction is not None:
        sources = [replace(source, case=replace(source.case, split="test")) for source in sources]
    schema = unified_schema(classes, negative_class) if len(classes) > 1 else None
    if schema is not None:
        healthy = schema.negative_class
    elif negative_class is not None:
        healthy = canonical_name(negative_class)
    else:
        healthy = next(filter(means_healthy, classes), None)
    sources = [
        replace(source, is_healthy=source.case.tumour_class == healthy, resampling=resampling) for source in sources
    ]
    if schema is None and for_prediction is None:
        only = f"all cases are {min(classes)}" if classes else "no diagnosis is known"
        notes.append(f"No classes: {only}. A model of this data set segments only.")
    useless = [
        source
        for source in sources
        if for_prediction is None and not source.has_mask and (len(classes) < 2 or not source.case.tumour_class)
    ]
    problems += [
        f"{request.source / source.case.source}: neither mask nor class: nothing to learn from; add one, or remove it, "
        "or convert new patients with --for-prediction"
        for source in useless
    ]
    sources = [source for source in sources if source not in useless]
    content: dict[str, Any] = {"description": "Converted from folders of patients"}
    if schema is not None:
        content["classification"] = schema.to_json()
    names = BINARY_LABELS if label_values is None else {name: i for i, name in enumerate(label_values, start=1)}
    if label_values is not None:
        content["source_labels"] = {str(names[name]): value for name, value in label_values.items()}
    labels_all = split_column is not None  # all parts are evaluated
    target_labels = with_ignore_label({"background": 0, **names}, sources, labels_all)
    target = Target(
        target_labels,
        tuple(patterns),
        choice,
        plane,
        keep_orientation=keep_orientation,
        rescale=rescale_volumes,
        for_prediction=for_prediction is not None,
        labels_all=labels_all,
    )
    if register:
        notes.append(f"Pictures of the registration, to be looked at: {dataset.pictures_folder}")
    return convert_volumes(request, dataset, sources, target, content, problems, notes)


def _in_order_of(request: ConversionRequest, dataset_id: int, patterns: Mapping[str, str]) -> dict[str, str]:
    """Puts channels into the order of another data set, looked for in all of nnU-Net's folders.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: its channels have other names, or it holds pictures.
    """
    name = f"Dataset{dataset_id:03d}_*"
    folders = (request.raw_folder, *request.other_folders)
    found = [path for folder in folders for way in (name, f"{name}/*") for path in folder.glob(f"{way}/{DATASET_FILE}")]
    if not found:
        raise FileNotFoundError(
            f"{request.raw_folder}: no data set {dataset_id} there, nor in nnUNet_preprocessed or nnUNet_results; "
            "correct --for-prediction, or leave out its number"
        )
    content = read_dataset_json(found[0], "restore it")
    channels = content.get("channel_names") or content["modality"]
    names = [channels[key] for key in sorted(channels, key=int)]
    if set(names) != set(patterns):
        raise ValueError(
            f"{found[0]}: has the channels {', '.join(names)}, but --channel names {', '.join(patterns)}; name the same"
        )
    if content["file_ending"] != ".nii.gz":
        raise ValueError(f"{found[0]}: a model of it takes {content['file_ending']}, not volumes; use another model")
    return {name: patterns[name] for name in names}


def _label_values(labels: Sequence[str]) -> dict[str, int]:
    values = {}
    for name, text in named_pairs(labels, "--labels", "core=1").items():
        if not re.fullmatch(r"[0-9]+", text) or int(text) == 0 or name in ("background", "ignore"):
            raise ValueError(f"--labels {name}={text}: values are whole numbers above 0 (0 is background); correct it")
        values[name] = int(text)
    if len(set(values.values())) < len(values):
        raise ValueError(f"--labels: a value has two names: {', '.join(labels)}; leave one out")
    return values


def find_cases(
    source: Path,
    patterns: Mapping[str, str],
    mask: str | None,
    labels: Mapping[str, int] | None,
    table: Diagnoses | None,
) -> tuple[list[FolderCase], list[str], list[str]]:
    """Finds the volumes of all patients.

    Args:
        source: the folder with the patients' folders.
        patterns: channel -> pattern.
        mask: the masks' pattern.
        labels: name -> value in the masks; None: binary.
        table: of diagnoses.

    Returns:
        The cases, sorted by folder; the problems; and sentences for the summary.

    Raises:
        FileNotFoundError: there are no folders.
        SourceError: the table fits none of them.
    """
    folders = subfolders(source) or ([source] if dicom_files(source) else [])
    if not folders:
        raise FileNotFoundError(
            f"{source}: no folders in it, one a patient is expected; give the folder that holds them"
        )
    mapping = None if labels is None else tuple((value, i) for i, value in enumerate(labels.values(), start=1))
    cases, problems = [], []
    patients: dict[str, list[str]] = defaultdict(list)
    for examination in (found for folder in folders for found in find_examinations(folder, patterns, mask)):
        parts = examination.parts(source) or (source.name,)
        faults = examination.faults()
        try:
            row = (table or Diagnoses({})).find(parts, examination.names_within())
        except ValueError as error:
            faults.append(f"{examination.folder}: {error}")
        problems += faults
        if not faults:
            label, place = "/".join(parts), examination.folder.relative_to(source).as_posix()
            patient = row.patient or examination.patient or (parts[0] if len(parts) < 3 else "/".join(parts[:-1]))
            patients[patient].append(label)
            case = Case(_case_name(label), row.tumour_class, patient, split=row.split, source=place, date=row.date)
            channels = tuple(volumes[0] for volumes in examination.chosen.values())
            cases.append(FolderCase(case, channels, next(iter(examination.masks), None), mapping))
    counts = Counter(case.case.case for case in cases)
    problems += [
        f"{source / case.case.source}: its case would be named {case.case.case}, as that of another folder; rename it"
        for case in cases
        if counts[case.case.case] > 1
    ]
    cases = [case for case in cases if counts[case.case.case] == 1]
    parts_of: dict[str, set[str]] = defaultdict(set)
    for found in cases:
        parts_of[found.case.patient].add(found.case.split)
    problems += [
        f"{source}: patient {patient} is in the parts {' and '.join(sorted(names))} of the table; put all examinations "
        "of a patient into one"
        for patient, names in parts_of.items()
        if len(names) > 1
    ]
    cases = [case for case in cases if len(parts_of[case.case.patient]) == 1]
    notes = [
        f"Several examinations: {patient} ({', '.join(labels)})."
        for patient, labels in sorted(patients.items())
        if len(labels) > 1 and any("/" in label for label in labels)
    ]
    return cases, problems, notes + (table.notes(source) if table else [])


def _case_name(folder_name: str) -> str:
    """Returns a name that is safe in file names on every system."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", folder_name).strip("_.") or "case"
