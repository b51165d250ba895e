"""Volumes to cases, as the converters `brats`, `folder` and `lgg` share it: whole volumes, or slices of them.

A source module finds its volumes and describes each by an object with the methods of `VolumeSource`; everything from
the checks to the written data set is `convert_volumes`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
from PIL import Image

from braintum.conversion.building.inspection import SourceError, check_problems, naming_problems
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.registration_pictures import write_registration_picture
from braintum.conversion.building.resampling import ResampledCase
from braintum.conversion.building.selection import select_fraction
from braintum.conversion.building.slices import (
    RESCALED_VOLUMES,
    SliceChoice,
    choose_plane,
    rescaled,
    shows_something,
    slice_geometry,
    slice_image,
    slice_positions,
    stack_slices,
    to_anatomical,
)
from braintum.conversion.building.summary import CaseReport, part_notes, plane_note, summary_table
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.folders import unused_images, unused_note
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.files.volumes import VolumeError, compact, image_like, spacing_text, write_image
from braintum.conversion.format.cases import Case
from braintum.conversion.format.splits import patient_splits

MAX_NAMES = 8
"""Of more cases than this a remark in the summary names only the first; `dataset.json` names all."""
IGNORE = "ignore"
"""nnU-Net's name of the label that a loss does not look at."""
NO_TUMOUR = "no tumour in the mask"


@dataclass(frozen=True)
class LoadedVolume:
    """What `VolumeSource.load` returns.

    Attributes:
        channels: images on one grid, in the order of the data set's channels.
        mask: label map with the data set's own labels, uint8, shape (Z, Y, X) as the channels have it; None where the
            source has none.
        remarks: what the user should know about this volume; equal remarks are reported together.
        slice_files: number and file of each slice, where the source has a file a slice.
        source: the volume's, with what loading found out and need not find out again; None: as it was.
        registered: where channels were registered: what a picture of that is made from.
    """

    channels: tuple[sitk.Image, ...]
    mask: np.ndarray | None
    remarks: tuple[str, ...] = ()
    slice_files: tuple[tuple[int, str], ...] = ()
    source: "VolumeSource | None" = None
    registered: ResampledCase | None = None


class VolumeSource(Protocol):
    """One volume of a source, before it is read; has to be picklable.

    `case` holds all that is known without reading: name, class, patient, part and source.
    """

    @property
    def case(self) -> Case:
        """The case, if the whole volume becomes one."""

    @property
    def has_mask(self) -> bool:
        """Whether `load` returns a mask."""

    def files(self) -> list[Path]:
        """All files that the volume is made from."""

    def load(self) -> LoadedVolume:
        """Reads and checks the volume; raises `VolumeError`."""


@dataclass(frozen=True)
class Target:
    """How volumes become cases.

    Attributes:
        labels: as in `dataset.json`.
        channel_names: one a channel.
        slices: which slices become 2-D cases; None makes each volume a case.
        plane: the plane of slices; see `slices.choose_plane`.
        spacing_known: False where the source has no spacing; that of the images is then nominal, sizes are counted in
            voxels or pixels, and `cases.csv` has no spacing.
        file_ending: `.nii.gz`, or `.png` for slices of unknown spacing with 8 bits.
        slice_classes: class of slices with and of slices without tumour; None leaves them their volume's class.
        keep_orientation: nnU-Net reads volumes as their files store them; else in one orientation, whatever that is.
        for_prediction: all cases are test cases, and there is nothing to split.
        rescale: each channel of a volume is brought to [0, 1] before it is sliced.
        labels_all: cases of test parts without a mask get the ignore label, too, so that their class is evaluated.
    """

    labels: Mapping[str, Any]
    channel_names: tuple[str, ...]
    slices: SliceChoice | None = None
    plane: str = "auto"
    spacing_known: bool = True
    file_ending: str = ".nii.gz"
    slice_classes: tuple[str, str] | None = None
    keep_orientation: bool = False
    for_prediction: bool = False
    rescale: bool = False
    labels_all: bool = False

    def __post_init__(self) -> None:
        if self.rescale and self.slices is None:
            raise ValueError("--rescale-volumes is for slices (planners rescale volumes): ask for slices, or leave it")

    @property
    def reader(self) -> str:
        """nnU-Net's reader of the files. What it turns while reading, it turns back in the masks that it writes."""
        if self.file_ending == ".png":
            return "NaturalImage2DIO"
        return "SimpleITKIO" if self.slices is not None or self.keep_orientation else "SimpleITKIOWithReorient"

    @property
    def unit(self) -> str:
        """Unit of the summary's tumour sizes."""
        if self.slices is None:
            return "ml" if self.spacing_known else "voxels"
        return "mm²" if self.spacing_known else "px"


@dataclass(frozen=True)
class VolumeInspection:
    """The check of one volume: the cases that it makes, with their slice numbers (None: the volume); or problems.

    `source` is that of `LoadedVolume`.
    """

    reports: tuple[CaseReport, ...] = ()
    slices: tuple[int | None, ...] = ()
    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    source: VolumeSource | None = None


@dataclass(frozen=True)
class CaseFiles:
    """Where one case is written; `label` is None for a test case without a mask."""

    slice: int | None
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class WriteTask:
    """What `write_volume` needs: the cases of one volume that are not written yet, and where a picture would be."""

    source: VolumeSource
    target: Target
    files: tuple[CaseFiles, ...]
    picture: Path


@dataclass(frozen=True)
class SlicedVolume:
    """A volume as slices in one plane.

    Attributes:
        channels: arrays of shape (slice, row, column).
        mask: the same for the label map, None where there is none.
        plane: `axial`, `coronal` or `sagittal`.
        spacing: in mm, x and y of a slice.
        origin: in mm, likewise.
        positions: of the slices, in mm; see `slices.slice_positions`.
    """

    channels: tuple[np.ndarray, ...]
    mask: np.ndarray | None
    plane: str
    spacing: tuple[float, float]
    origin: tuple[float, float]
    positions: np.ndarray


def convert_volumes(
    request: ConversionRequest,
    dataset: RawDataset,
    sources: Sequence[VolumeSource],
    target: Target,
    dataset_json: Mapping[str, Any],
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
    accounted: Sequence[Path] = (),
) -> ConversionResult:
    """Checks all volumes and converts them, or only checks them (`request.dry_run`). Splits are made by patient.

    Args:
        request: source, target and how to convert.
        dataset: the opened data set.
        sources: all volumes; `request.fraction` of them are converted.
        target: how they become cases.
        dataset_json: entries of `dataset.json` beside labels and channel names; `classification` where there is one.
        problems: what is already known to be wrong, reported together with what is found here.
        notes: sentences for the end of the summary.
        accounted: files and folders of the source that are rightly not used.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults and the request is strict, or no case is without; all of them are listed, and
            nothing is written.
        ValueError: the training cases are of fewer than two patients.
    """
    used = [*accounted, *(path for source in sources for path in source.files())]
    chosen = {case.case for case in select_fraction([x.case for x in sources], request.fraction, request.seed)}
    sources = [source for source in sources if source.case.case in chosen]
    inspections = run_cases(partial(inspect_volume, target=target), sources, request.n_processes, "checking")
    problems = [*problems, *(problem for found in inspections for problem in found.problems)]
    check_problems(problems, request, sum(not found.problems for found in inspections))
    faultless = [(source, found) for source, found in zip(sources, inspections, strict=True) if not found.problems]
    sources, inspections = [source for source, _ in faultless], [found for _, found in faultless]

    reports = [report for found in inspections for report in found.reports]
    cases = [report.case for report in reports]
    with naming_problems(problems, request):
        splits = [] if target.for_prediction else patient_splits(cases)
    remarks: dict[str, list[str]] = defaultdict(list)
    for source, found in zip(sources, inspections, strict=True):
        for remark in found.remarks:
            remarks[remark].append(source.case.case)
    # without a schema, the table still shows the classes that are known
    known = sorted({case.tumour_class for case in cases} - {""})
    classes = dataset_json.get("classification", {}).get("class_names", known)
    unused = unused_images(request.source, used, problems, request.not_needed)
    table = summary_table(reports, classes, target.unit)
    planes = [] if target.slices is None else plane_note(reports, "--plane axial cuts every volume the same way")
    lines = [table, *part_notes(reports), *notes, *planes, *_remark_lines(remarks), *unused_note(unused)]
    lines += _healthy_hints(sources, inspections, dataset_json.get("classification", {}).get("negative_class"))
    # a distance of slices that nobody knows is no ground for 3-D patches
    configuration = "3d_fullres" if target.slices is None and target.spacing_known else "2d"
    result = ConversionResult(
        dataset.folder,
        "\n".join(lines),
        len(cases),
        configuration,
        "classification" in dataset_json,
        tuple(problems),
        tuple(unused),
    )
    if request.dry_run:
        return result
    dataset.begin(cases)
    dataset.write_cases(write_volume, _write_tasks(dataset, sources, inspections, target), request.n_processes)
    content: dict[str, Any] = {
        "name": request.dataset_name,
        "channel_names": {str(number): name for number, name in enumerate(target.channel_names)},
        "labels": dict(target.labels),
        "overwrite_image_reader_writer": target.reader,
        **dataset_json,
    }
    if target.rescale:
        content[RESCALED_VOLUMES] = True
    if remarks:
        content["remarks"] = {remark: remarks[remark] for remark in sorted(remarks)}
    dataset.finish(cases, splits, content, [*problems, *unused])
    return result


def with_ignore_label(
    labels: Mapping[str, Any], sources: Sequence[VolumeSource], labels_all: bool = False
) -> dict[str, Any]:
    """Declares nnU-Net's ignore label, the highest of all, if a case needs it: one without a mask, see `Target`."""
    if all(source.has_mask or (source.case.split != "train" and not labels_all) for source in sources):
        return dict(labels)
    values = [max(value) if isinstance(value, (list, tuple)) else value for value in labels.values()]
    return {**labels, IGNORE: max(values) + 1}


def inspect_volume(source: VolumeSource, target: Target) -> VolumeInspection:
    """Reads and checks one volume and chooses its slices."""
    try:
        loaded = source.load()
    except VolumeError as error:
        return VolumeInspection(problems=error.problems)
    remarks = list(loaded.remarks)
    if loaded.mask is not None and not loaded.mask.any():
        remarks.append(NO_TUMOUR)
    if target.slices is None:
        image = loaded.channels[0]
        plane = choose_plane(to_anatomical(image[:1, :1, :1]))  # that it was acquired in: its header tells
        case = _with_spacing(replace(source.case, plane=plane), target, image.GetSpacing())
        voxel = float(np.prod(image.GetSpacing())) / 1000 if target.spacing_known else 1.0
        report = CaseReport(case, image.GetSize(), _size(loaded.mask, voxel))
        return VolumeInspection((report,), (None,), tuple(remarks), source=loaded.source)
    sliced = slice_volume(loaded, target.plane, target.rescale)
    tumour = None if sliced.mask is None else sliced.mask.max(axis=(1, 2)) > 0
    numbers = target.slices.select(shows_something(sliced.channels), tumour)
    if not numbers:
        remarks.append("no slice chosen, not in the data set")
    reports = tuple(_slice_report(source.case, target, sliced, number, loaded.slice_files) for number in numbers)
    return VolumeInspection(reports, tuple(numbers), tuple(remarks), source=loaded.source)


def _slice_report(
    volume: Case, target: Target, sliced: SlicedVolume, number: int, slice_files: Sequence[tuple[int, str]]
) -> CaseReport:
    mask = None if sliced.mask is None else sliced.mask[number]
    shown, source = slice_files[number] if slice_files else (number, volume.source)
    position = f"{round(sliced.positions[number], 3):g}" if target.spacing_known else ""
    case = replace(
        volume,
        case=f"{volume.case}_{shown:03d}",
        plane=sliced.plane,
        source=source,
        slice=str(shown),
        position=position,
    )
    if target.slice_classes is not None and mask is not None:
        case = replace(case, tumour_class=target.slice_classes[0 if mask.any() else 1])
    case = _with_spacing(case, target, sliced.spacing)
    rows, columns = sliced.channels[0].shape[1:]
    pixel = float(np.prod(sliced.spacing)) if target.spacing_known else 1.0
    return CaseReport(case, (columns, rows), _size(mask, pixel))


def _with_spacing(case: Case, target: Target, spacing: Sequence[float]) -> Case:
    return replace(case, spacing=spacing_text(spacing) if target.spacing_known else "")


def _healthy_hints(
    sources: Sequence[VolumeSource], inspections: Sequence[VolumeInspection], negative_class: str | None
) -> list[str]:
    """Returns a sentence for each class that has empty masks only, and is not the negative one."""
    empty: dict[str, list[bool]] = defaultdict(list)
    for source, found in zip(sources, inspections, strict=True):
        empty[source.case.tumour_class].append(NO_TUMOUR in found.remarks)
    return [
        f"Class {name} has empty masks only. If it is the healthy one, name it (--negative-class {name}): weights, "
        "false masks and contradictions depend on it."
        for name, are_empty in sorted(empty.items())
        if name not in ("", negative_class) and all(are_empty)
    ]


def _size(mask: np.ndarray | None, unit: float) -> float | None:
    count = 0 if mask is None else int(np.count_nonzero(mask))
    return count * unit if count else None


def slice_volume(loaded: LoadedVolume, plane: str, rescale: bool = False) -> SlicedVolume:
    """Turns a volume into slices, with `rescale` after it is brought to [0, 1]; see `slices`."""
    channels = [to_anatomical(image) for image in loaded.channels]
    plane = choose_plane(channels[0], plane)
    mask = None
    if loaded.mask is not None:
        turned = to_anatomical(image_like(loaded.mask, loaded.channels[0]))
        mask = stack_slices(sitk.GetArrayFromImage(turned), plane)
    # of the volume, not of a slice: the slices of one volume get one type, and one scale
    prepare = rescaled if rescale else compact
    stacks = tuple(stack_slices(prepare(sitk.GetArrayFromImage(image)), plane) for image in channels)
    geometry = slice_geometry(channels[0], plane)
    return SlicedVolume(stacks, mask, plane, *geometry, slice_positions(channels[0], plane))


def _write_tasks(
    dataset: RawDataset, sources: Sequence[VolumeSource], inspections: Sequence[VolumeInspection], target: Target
) -> list[WriteTask]:
    """Returns what is not written yet."""
    tasks = []
    for source, found in zip(sources, inspections, strict=True):
        changed = max(path.stat().st_mtime_ns for path in source.files())
        files = []
        for report, number in zip(found.reports, found.slices, strict=True):
            case = report.case
            images = tuple(dataset.image_path(case, channel) for channel in range(len(target.channel_names)))
            label = dataset.label_path(case) if source.has_mask or case.split == "train" or target.labels_all else None
            expected = images if label is None else (*images, label)
            if not all(path.is_file() and path.stat().st_mtime_ns >= changed for path in expected):
                files.append(CaseFiles(number, images, label))
        if files:
            tasks.append(WriteTask(found.source or source, target, tuple(files), dataset.picture_path(source.case)))
    return tasks


def write_volume(task: WriteTask) -> None:
    """Writes images and label maps of one volume's cases; where there is no mask, the ignore label everywhere.

    Raises:
        SourceError: the files are not what they were when they were checked.
    """
    try:
        loaded = task.source.load()
    except VolumeError as error:
        raise SourceError(f"{error.problems[0]} (this changed during the conversion)") from error
    if loaded.registered is not None:
        write_registration_picture(loaded.registered, task.picture)
    ignore = task.target.labels.get(IGNORE)
    if task.target.slices is None:
        write_3d(loaded, task.files[0], ignore)
        return
    sliced = slice_volume(loaded, task.target.plane, task.target.rescale)
    write: Callable[[np.ndarray, Path], None] = _write_png
    if task.target.file_ending != ".png":
        write = partial(_write_slice, spacing=sliced.spacing, origin=sliced.origin)
    for files in task.files:
        for stack, path in zip(sliced.channels, files.images, strict=True):
            write(stack[files.slice], path)
        if files.label is not None:
            shape = sliced.channels[0].shape[1:]
            write(_ignored(shape, ignore) if sliced.mask is None else sliced.mask[files.slice], files.label)


def write_3d(loaded: LoadedVolume, files: CaseFiles, ignore: int | None) -> None:
    """Writes a volume; all its files get the first channel's geometry, equal to theirs within the tolerances."""
    reference = loaded.channels[0]
    for image, path in zip(loaded.channels, files.images, strict=True):
        write_image(image_like(compact(sitk.GetArrayFromImage(image)), reference), path)
    if files.label is not None:
        mask = _ignored(reference.GetSize()[::-1], ignore) if loaded.mask is None else loaded.mask
        write_image(image_like(mask, reference), files.label)


def _ignored(shape: tuple[int, ...], ignore: int | None) -> np.ndarray:
    if ignore is None:
        raise SourceError("a mask is missing now that was there when the files were checked; start again")
    return np.full(shape, ignore, np.uint8)


def _write_slice(pixels: np.ndarray, path: Path, spacing: Sequence[float], origin: Sequence[float]) -> None:
    write_image(slice_image(pixels, spacing, origin), path)


def _write_png(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as partial_path:
        Image.fromarray(np.ascontiguousarray(pixels)).save(partial_path, format="PNG")


def _remark_lines(remarks: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for remark in sorted(remarks):
        names = remarks[remark]
        shown = ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
        lines.append(f"{remark}: {len(names)} volume(s): {shown}")
    return lines
