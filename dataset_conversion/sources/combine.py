"""One data set from several converted ones: `braintum_convert combine ID ID … -d ID`.

They have to agree in what nnU-Net has one setting for: channels, reader, two or three dimensions, and labels apart from
the ignore label. Everything else is unified:

- files: where some data sets hold pictures and others slices with a spacing, pictures become slices whose pixels count
  as 1 mm; what a model makes of such a mixture must not depend on the spacing (`BrainTumPlannerPretrained`).

- classes: all that occur, in canonical order (see `class_names`). `tumor` says less than `glioma`: where named types
  are there as well, the class of such a case is unknown, and the case trains the mask only;
- the ignore label is declared if one of them declares it, with one value;
- cases, patients and groups get the data set's name in front where the same name occurs in two; patients of one name
  may be one person (editions of BraTS overlap), and share a group, so that no split separates them;
- duplicates between the data sets share a group, and the splits are made anew;
- a test case without a label map has nothing to be measured against, and is left out.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.building.converted_dataset import IGNORE, ConvertedDataset, read_converted
from braintum.conversion.building.image_files import read_array, replace_label, write_slice
from braintum.conversion.building.inspection import (
    Inspection,
    SourceError,
    inspect_cases,
    naming_problems,
    raise_problems,
)
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.selection import assign_groups, join_groups, select_fraction, warn_of_leaks
from braintum.conversion.building.slices import RESCALED_VOLUMES
from braintum.conversion.building.summary import CaseReport, summary_notes, summary_table
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import check_file, one_line
from braintum.conversion.files.folders import unused_images, unused_note
from braintum.conversion.files.json_files import label_values
from braintum.conversion.format.cases import Case, ClassSchema
from braintum.conversion.format.class_names import NEGATIVE_CLASS, UNSPECIFIC_CLASS, canonical_name, unified_schema
from braintum.conversion.format.splits import patient_splits

logger = logging.getLogger(__name__)

KIND = "combine"
DEFAULT_NAME = "Combined"
DESCRIPTION = "several converted data sets with the same channels into one"
READER = "overwrite_image_reader_writer"
PICTURES, SLICES = ".png", ".nii.gz"


@dataclass(frozen=True)
class CombinedCase:
    """One case: where it comes from, and its new row.

    Attributes:
        case: the row of `cases.csv` in the combined data set.
        shared_patient: the patient, where several data sets have one of this name: it may be the same person.
        files: images and label map in the old one.
        label_values: that the label map may hold in the old one.
        ignore_label: the value of the ignore label in the old one.
        new_ignore_label: and in the combined one.
    """

    case: Case
    shared_patient: str
    files: tuple[Path, ...]
    label_values: frozenset[int]
    ignore_label: int | None
    new_ignore_label: int | None


@dataclass(frozen=True)
class CopyTask:
    """What `copy_case` needs; `targets` are in the order of `combined.files`."""

    combined: CombinedCase
    targets: tuple[Path, ...]


def combine(
    request: ConversionRequest,
    dataset_ids: Sequence[int],
    channel_names: Sequence[str] | None = None,
    pool: bool = False,
) -> ConversionResult:
    """Combines converted data sets, or only checks whether that is possible (`request.dry_run`).

    Args:
        request: the new data set; its source is `nnUNet_raw`.
        dataset_ids: at least two different numbers of data sets there.
        channel_names: names of the channels in the new data set, for data sets that name the same channels
            differently; otherwise the names have to agree.
        pool: put test parts into imagesTr and into the splits; otherwise they stay in imagesTs.

    Returns:
        The new data set's folder and summary.

    Raises:
        SourceError: the data sets do not fit together, or files of cases are missing; nothing is written.
        ValueError: fewer than two data sets, or one twice.
        FileNotFoundError: there is no data set of this number.
    """
    if len(dataset_ids) < 2 or len(set(dataset_ids)) < len(dataset_ids):
        raise ValueError(f"at least two different data sets can be combined, not {', '.join(map(str, dataset_ids))}")
    if request.dataset_id in dataset_ids:
        raise ValueError(f"data set {request.dataset_id} cannot be combined into itself; choose another -d")
    parts = [read_converted(request.source, dataset_id) for dataset_id in dataset_ids]
    raise_problems(_incompatibilities(parts, channel_names), request.source)
    options = {
        "datasets": [part.folder.name for part in parts],
        "channel_names": list(channel_names or ()),
        "pool": pool,
    }
    ending = _common_ending(parts)
    dataset = RawDataset.open(request, KIND, options, ending)
    schema = _unify_classes(parts)
    labels = _unify_labels(parts)
    combined = _unify_cases(parts, schema, labels.get(IGNORE), pool)
    unlisted = [problem for part in parts for problem in part.unlisted]
    reports, problems = inspect_cases(inspect_case, combined, request, unlisted)
    # `tumor` without a mask, beside named types: such a case would train nothing
    useful = {report.case.case for report in reports if report.case.tumour_class or report.tumour_size is not None}
    if len(useful) < len(reports):
        logger.warning("%d cases left out: neither class nor mask is known any more", len(reports) - len(useful))
    combined = [item for item in combined if item.case.case in useful]
    cases = [item.case for item in combined]
    ties = [[case.group for case in cases], [item.shared_patient for item in combined]]
    if ending == PICTURES:
        found = assign_groups(cases, [item.files[0] for item in combined], request.n_processes)
        ties.append([case.group for case in found])
    cases = join_groups(cases, *ties)
    warn_of_leaks(cases)
    cases = select_fraction(cases, request.fraction, request.seed)
    with naming_problems(problems, request):
        splits = patient_splits(cases)
    used = [path for item in combined for path in item.files]
    unused = [image for part in parts for image in unused_images(part.folder, used, problems, request.not_needed)]
    chosen = {case.case: case for case in cases}
    reports = [replace(report, case=chosen[report.case.case]) for report in reports if report.case.case in chosen]
    unit = "px" if ending == PICTURES else "voxels"
    table = summary_table(reports, schema.class_names if schema else (), unit)
    configuration = "2d" if parts[0].is_2d else "3d_fullres"
    result = ConversionResult(
        dataset.folder,
        "\n".join([table, summary_notes(reports), *unused_note(unused)]),
        len(cases),
        configuration,
        schema is not None,
        tuple(problems),
        tuple(unused),
    )
    if request.dry_run:
        return result
    dataset.begin(cases)
    tasks = []
    for item in combined:
        if item.case.case in chosen and not dataset.is_done(item.case, item.files, len(item.files) - 1):
            images = [dataset.image_path(item.case, channel) for channel in range(len(item.files) - 1)]
            tasks.append(CopyTask(item, (*images, dataset.label_path(item.case))))
    dataset.write_cases(copy_case, tasks, request.n_processes)
    dataset.finish(cases, splits, _dataset_json(request, parts, schema, labels, channel_names), [*problems, *unused])
    return result


def _incompatibilities(parts: Sequence[ConvertedDataset], channel_names: Sequence[str] | None) -> list[str]:
    """Returns why data sets cannot be combined with the first one."""
    first, *others = parts
    problems = []
    n_channels = len(first.dataset_json["channel_names"])
    if channel_names is not None and len(channel_names) != n_channels:
        problems.append(
            f"{first.folder.name} has {n_channels} channel(s), but --channel-names gives {len(channel_names)} name(s)"
        )
    for other in others:
        pair = f"{first.folder.name} and {other.folder.name} differ in their"
        ours, theirs = first.dataset_json, other.dataset_json
        channels = [list(content["channel_names"].values()) for content in (ours, theirs)]
        if len(channels[0]) != len(channels[1]):
            problems.append(f"{pair} number of channels ({_words(channels)}); convert the same channels of both")
        elif channels[0] != channels[1] and channel_names is None:
            problems.append(
                f"{pair} channels ({_words(channels)}); a network would take one for the other. If they do show the "
                f"same, name them with --channel-names"
            )
        endings = [content["file_ending"] for content in (ours, theirs)]
        if endings[0] != endings[1] and not (set(endings) == {PICTURES, SLICES} and first.is_2d and other.is_2d):
            problems.append(
                f"{pair} file ending ({endings[0]} and {endings[1]}): nnU-Net reads one kind of file a data set"
            )
        elif endings[0] == endings[1] and ours.get(READER) != theirs.get(READER):
            problems.append(f"{pair} reader ({ours.get(READER)} and {theirs.get(READER)}); convert one of them again")
        elif first.is_2d != other.is_2d:
            sizes = ["slices" if part.is_2d else "volumes" for part in (first, other)]
            problems.append(f"{pair} dimensions ({sizes[0]} and {sizes[1]}); convert one of them again (--slices)")
        if ours.get(RESCALED_VOLUMES) != theirs.get(RESCALED_VOLUMES):
            problems.append(f"{pair} intensities (--rescale-volumes); convert both with it, or both without")
        labels = [{k: v for k, v in content["labels"].items() if k != IGNORE} for content in (ours, theirs)]
        orders = [content.get("regions_class_order") for content in (ours, theirs)]
        if labels[0] != labels[1] or orders[0] != orders[1]:
            problems.append(f"{pair} labels ({labels[0]} and {labels[1]}); convert them with the same labels")
    return problems


def _common_ending(parts: Sequence[ConvertedDataset]) -> str:
    """Returns the file ending of the combined data set; pictures become slices where there are both."""
    endings = {part.dataset_json["file_ending"] for part in parts}
    if len(endings) == 1:
        return str(endings.pop())
    logger.warning(
        "pictures without a spacing become slices whose pixels count as 1 mm: plan with BrainTumPlannerPretrained, for "
        "which spacing does not matter"
    )
    return SLICES


def _words(channels: Sequence[Sequence[str]]) -> str:
    return " and ".join("/".join(map(str, names)) for names in channels)


def _unify_classes(parts: Sequence[ConvertedDataset]) -> ClassSchema | None:
    # a data set of one class declares none, but its rows name it: BraTS-GLI and BraTS-MEN make two
    declared = {name for part in parts if part.schema for name in part.schema.class_names}
    names = {canonical_name(name) for name in declared | {c.tumour_class for part in parts for c in part.cases} - {""}}
    if names - {UNSPECIFIC_CLASS, NEGATIVE_CLASS}:
        names.discard(UNSPECIFIC_CLASS)
    negatives = {
        canonical_name(part.schema.negative_class) for part in parts if part.schema and part.schema.negative_class
    }
    if len(negatives) > 1:
        raise ValueError(
            f"the healthy class is called {' and '.join(sorted(negatives))}; give it one name in cases.csv and "
            "dataset.json of all data sets"
        )
    return unified_schema(names, next(iter(negatives), None)) if len(names) > 1 else None


def _unify_labels(parts: Sequence[ConvertedDataset]) -> dict[str, Any]:
    labels = {name: value for name, value in parts[0].dataset_json["labels"].items() if name != IGNORE}
    if any(part.ignore_label is not None for part in parts):
        labels[IGNORE] = max(label_values(labels)) + 1  # nnU-Net wants the highest value for it
    return labels


def _unify_cases(
    parts: Sequence[ConvertedDataset], schema: ClassSchema | None, new_ignore: int | None, pool: bool
) -> list[CombinedCase]:
    """Returns all cases under unique names, with unified classes, sorted by name."""
    repeated = {
        attribute: _in_several(
            [{getattr(case, attribute).lower() for case in part.cases} - {""} for part in parts],
        )
        for attribute in ("case", "patient", "group")
    }
    combined = []
    unspecific = 0
    prefixes = _prefixes(parts)
    for part in parts:
        for case in part.cases:
            names = {
                attribute: f"{prefixes[part.folder]}_{value}" if value.lower() in taken else value
                for attribute, taken in repeated.items()
                for value in (getattr(case, attribute),)
            }
            tumour_class = canonical_name(case.tumour_class) if case.tumour_class else ""
            if schema is None or tumour_class not in schema.class_names:
                unspecific += bool(tumour_class)
                tumour_class = ""
            if pool:
                names["split"] = "train"
            row = replace(case, **names, tumour_class=tumour_class, source=f"{part.folder.name}/{case.case}")
            shared = case.patient.lower() if case.patient.lower() in repeated["patient"] else ""
            files = tuple(part.files(case))
            combined.append(CombinedCase(row, shared, files, part.label_values, part.ignore_label, new_ignore))
    doubles = [name for name, number in Counter(item.case.case for item in combined).items() if number > 1]
    if doubles:
        raise SourceError(f"case name {doubles[0]} would occur twice in the combined data set; rename it in one source")
    if unspecific:
        logger.warning(
            "%d cases are of the class %s, which may be any of the others: their class is unknown in the combined data "
            "set, and they train the mask only",
            unspecific,
            UNSPECIFIC_CLASS,
        )
    return sorted(combined, key=lambda item: item.case.case)


def _in_several(sets: Sequence[Iterable[str]]) -> set[str]:
    counts = Counter(name for names in sets for name in names)
    return {name for name, number in counts.items() if number > 1}


def _prefixes(parts: Sequence[ConvertedDataset]) -> dict[Path, str]:
    """Returns what stands before repeated names: the data set's name, or with its number where names are the same."""
    names = Counter(part.name.lower() for part in parts)
    return {part.folder: part.name if names[part.name.lower()] == 1 else part.folder.name for part in parts}


def inspect_case(item: CombinedCase) -> Inspection:
    """Checks that all files of a case are there, and measures them."""
    missing = [path for path in item.files if not path.is_file()]
    if missing:
        return Inspection(
            problems=tuple(f"{path}: there is no such file; convert the data set again" for path in missing)
        )
    arrays, problems = [], []
    for path in item.files:  # the images too: they are copied as they are
        try:
            check_file(path)
            arrays.append(read_array(path))
        except Exception as error:  # the libraries raise errors of many types for corrupt files
            fault = one_line(error).removeprefix(f"{path}: ")
            problems.append(f"{path}: cannot be read ({fault}); convert the data set again")
    if not problems and len({array.shape for array in arrays}) > 1:
        shapes = ", ".join("×".join(map(str, array.shape[::-1])) for array in arrays)
        problems.append(f"{item.files[-1]}: not of the size of its images ({shapes}); convert the data set again")
    if not problems and (unknown := set(np.unique(arrays[-1]).tolist()) - item.label_values):
        values = ", ".join(f"{value:g}" for value in sorted(unknown)[:5])
        problems.append(
            f"{item.files[-1]}: holds {values}, which dataset.json does not list as labels; convert the data set again"
        )
    if problems:
        return Inspection(problems=tuple(problems))
    label_map = arrays[-1]
    known = item.ignore_label is None or not (label_map == item.ignore_label).all()
    tumour = (label_map > 0) & (label_map != item.ignore_label) if item.ignore_label is not None else label_map > 0
    area = float(np.count_nonzero(tumour)) if known else None
    return Inspection(CaseReport(item.case, label_map.shape[::-1], area))


def copy_case(task: CopyTask) -> None:
    """Copies images and label map of one case; the ignore label gets its new value."""
    for path, target in zip(task.combined.files[:-1], task.targets[:-1], strict=True):
        with atomic_path(target) as partial:
            if path.suffix == target.suffix:
                shutil.copyfile(path, partial)
            else:
                write_slice(read_array(path), partial)
    path, target = task.combined.files[-1], task.targets[-1]
    with atomic_path(target) as partial:
        if path.suffix != target.suffix:
            labels = read_array(path)
            if task.combined.ignore_label is not None and task.combined.new_ignore_label is not None:
                labels = np.where(labels == task.combined.ignore_label, task.combined.new_ignore_label, labels)
            write_slice(labels.astype(np.uint8), partial)
        elif task.combined.ignore_label in (None, task.combined.new_ignore_label):
            shutil.copyfile(path, partial)
        else:
            replace_label(path, partial, int(task.combined.ignore_label or 0), int(task.combined.new_ignore_label or 0))


def _dataset_json(
    request: ConversionRequest,
    parts: Sequence[ConvertedDataset],
    schema: ClassSchema | None,
    labels: Mapping[str, Any],
    channel_names: Sequence[str] | None,
) -> dict[str, Any]:
    first = parts[0].dataset_json
    content: dict[str, Any] = {
        "name": request.dataset_name,
        "channel_names": dict(
            zip(first["channel_names"], channel_names or first["channel_names"].values(), strict=True)
        ),
        "description": "combined from " + ", ".join(part.folder.name for part in parts),
    }
    endings = {part.dataset_json["file_ending"] for part in parts}
    for key in (READER, RESCALED_VOLUMES, "regions_class_order"):
        if key in first and (key != READER or len(endings) == 1):
            content[key] = first[key]
    for key in ("reference", "licence"):
        found = list(dict.fromkeys(str(part.dataset_json[key]) for part in parts if part.dataset_json.get(key)))
        if found:
            content[key] = "; ".join(found)
    content["labels"] = dict(labels)
    if schema is not None:
        content["classification"] = schema.to_json()
    return content
