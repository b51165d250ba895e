"""What an audit looks at: the images of a data set or of folders, and the splits that they are in."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from braintum.conversion.building.raw_dataset import DATASET_FILE, raw_folder_from_environment
from braintum.conversion.duplicates.image_reading import is_image
from braintum.conversion.files.folders import unused_images, walk
from braintum.conversion.files.json_files import check_is_v2, read_json
from braintum.conversion.format.cases import CASES_FILE, COLUMNS, FOLDER_ENDINGS, Case, ClassSchema, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, read_splits

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_MASK_FOLDERS = {"mask", "masks", "label", "labels", "labelstr", "labelsts", "annotations"}


@dataclass(frozen=True)
class AuditImage:
    """One image, or the first channel of a case.

    Attributes:
        path: the file.
        name: how reports call it.
        case: nnU-Net's case identifier; in folders the file's name.
        tumour_class: empty if unknown.
        patient: empty if unknown.
        group: of `cases.csv`; empty if unknown.
        mask: the case's label map; None where there is none to be looked at.
        channels: files of further channels.
    """

    path: Path
    name: str
    case: str
    tumour_class: str = ""
    patient: str = ""
    group: str = ""
    mask: Path | None = None
    channels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Split:
    """A division whose sides should share nothing: name of a side -> indices of images."""

    name: str
    sides: dict[str, list[int]]


@dataclass(frozen=True)
class AuditInput:
    """Images and splits.

    Attributes:
        title: name of the data set, or of the folders.
        images: all images.
        splits: divisions to be checked; may be empty.
        negative_class: the healthy class, if there is one.
        ignore_label: of the label maps, if there is one.
        label_values: that label maps may hold, background and ignore label included; None where that is not known.
        notes: what a reader of the report has to know about the input.
        not_read: files that are not among them, and cases without a file; each with the reason.
    """

    title: str
    images: list[AuditImage]
    splits: list[Split]
    negative_class: str | None = None
    ignore_label: int | None = None
    label_values: frozenset[int] | None = None
    notes: list[str] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)


def find_input(targets: Sequence[str], not_needed: Sequence[str] = ()) -> AuditInput:
    """Finds what the command's arguments name.

    Args:
        targets: a data set's number, name or folder, or folders with images.
        not_needed: patterns of images that need not be looked at; see `folders.unused_images`.

    Raises:
        ValueError: they name nothing; or several data sets are named, or data sets mixed with folders.
        FileNotFoundError: a folder is not there.
    """
    folders = [_dataset_folder(target) for target in targets]
    if folders[0] is not None and len(targets) == 1:
        return input_from_dataset(folders[0], not_needed)
    for target, folder in zip(targets, folders, strict=True):
        if folder is not None and not Path(target).is_dir():
            raise ValueError(f"{target}: one data set at a time, or else folders; audit its folder imagesTr instead")
    return input_from_folders([Path(target) for target in targets], not_needed)


def _dataset_folder(target: str) -> Path | None:
    """Returns the data set's folder that an argument means, None if it does not look like a data set."""
    if Path(target).is_dir():
        return Path(target) if (Path(target) / DATASET_FILE).is_file() else None
    if not re.fullmatch(r"\d{1,3}|Dataset\d{3}_\S+", target):
        return None
    raw = raw_folder_from_environment()
    pattern = f"Dataset{int(target):03d}_*" if target.isdigit() else target
    found = sorted(path for path in raw.glob(pattern) if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{raw}: {'no data set' if not found else f'several data sets ({names}) for'} {target}")
    return found[0]


def input_from_dataset(folder: Path, not_needed: Sequence[str] = ()) -> AuditInput:
    """Takes a data set in nnU-Net's raw format: images and labels, dataset.json, cases.csv, splits_final.json.

    Raises:
        FileNotFoundError: `dataset.json` or a training image is missing.
        ValueError: a file is not valid.
    """
    dataset_json = read_json(folder / DATASET_FILE, "write it again")
    if not isinstance(dataset_json, dict) or not isinstance(dataset_json.get("file_ending"), str):
        raise ValueError(f'{folder / DATASET_FILE}: needs "file_ending"; see nnU-Net\'s dataset format')
    check_is_v2(dataset_json, folder / DATASET_FILE)
    schema = ClassSchema.from_dataset_json(dataset_json)
    notes: list[str] = []
    not_read: list[str] = []
    cases: dict[str, Case] = {}
    if (folder / CASES_FILE).is_file():
        cases = read_cases(folder / CASES_FILE)
    else:
        notes.append(f"There is no {CASES_FILE} ({', '.join(COLUMNS)}): patients and classes are unknown.")
    images: list[AuditImage] = []
    parts: dict[str, list[int]] = {}
    for part in FOLDER_ENDINGS.values():
        found = _images_of_part(folder, part, dataset_json["file_ending"], cases)
        parts[f"images{part}"] = list(range(len(images), len(images) + len(found)))
        images += found
    if not images:
        raise FileNotFoundError(f"{folder / 'imagesTr'}: no image ending in _0000{dataset_json['file_ending']}")
    missing = sorted(cases.keys() - {image.case for image in images})
    if missing:
        not_read.append(f"{CASES_FILE}: {len(missing)} case(s) have no image: {', '.join(missing[:10])}")
    n_channels = max(len(image.channels) for image in images)
    without = [image.name for image in images if len(image.channels) < n_channels]
    if without:
        notes.append(f"{len(without)} case(s) lack a channel that others have: {', '.join(without[:10])}.")
    splits = _read_splits(folder / SPLITS_FILE, images, parts["imagesTr"], notes, not_read)
    training, *tests = parts
    for test in filter(parts.get, tests):
        splits.append(Split(f"{training} and {test}", {side: parts[side] for side in (training, test)}))
    labels = dataset_json.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    ignore = labels.get("ignore")
    values = {value for entry in labels.values() for value in (entry if isinstance(entry, list) else [entry])}
    used = [path for image in images for path in (image.path, *image.channels, *([image.mask] if image.mask else []))]
    return AuditInput(
        folder.resolve().name,
        images,
        splits,
        schema.negative_class if schema else None,
        ignore if isinstance(ignore, int) else None,
        frozenset({0, *values}) if labels else None,
        notes,
        not_read + unused_images(folder, used, not_needed=not_needed),
    )


def _images_of_part(folder: Path, part: str, ending: str, cases: dict[str, Case]) -> list[AuditImage]:
    channels: dict[str, list[Path]] = {}
    image_folder = folder / f"images{part}"
    for path in sorted(image_folder.iterdir()) if image_folder.is_dir() else []:
        match = _CHANNEL.fullmatch(path.name.removesuffix(ending))
        if path.name.endswith(ending) and not path.name.startswith(".") and match:
            channels.setdefault(match[1], []).append(path)
    label_folder = folder / f"labels{part}"
    images = []
    for name, paths in channels.items():
        case = cases.get(name, Case(name))
        mask = label_folder / f"{name}{ending}"
        # nnU-Net needs label maps of training cases; those of test cases are there or not
        images.append(
            AuditImage(
                paths[0],
                f"images{part}/{paths[0].name}",
                name,
                case.tumour_class,
                case.patient,
                case.group,
                mask if part == "Tr" or mask.is_file() else None,
                tuple(paths[1:]),
            )
        )
    return images


def _read_splits(
    path: Path, images: Sequence[AuditImage], training: Sequence[int], notes: list[str], not_read: list[str]
) -> list[Split]:
    if not path.is_file():
        notes.append(f"There is no {SPLITS_FILE}: nnU-Net would make splits that know no patients.")
        return []
    index = {images[number].case: number for number in training}
    splits = []
    for fold, entry in enumerate(read_splits(path)):
        unknown = sorted({str(name) for side in ("train", "val") for name in entry[side]} - index.keys())
        if unknown:
            not_read.append(f"{SPLITS_FILE}: fold {fold} has {len(unknown)} unknown case(s): {', '.join(unknown[:10])}")
        sides = {side: [index[str(name)] for name in entry[side] if str(name) in index] for side in ("train", "val")}
        splits.append(Split(f"fold {fold}", sides))
    return splits


def input_from_folders(folders: Sequence[Path], not_needed: Sequence[str] = ()) -> AuditInput:
    """Takes folders of images, searched recursively, as the sides of one split.

    Folders for masks (`masks`, `labels`, …) and files whose names end in `_mask` are left out. A class is the name of
    the folder that an image lies in, below the given one.

    Raises:
        FileNotFoundError: a folder is not there or holds no image.
        ValueError: one folder lies within another one.
    """
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give a data set's number or folders of images")
    resolved = [folder.resolve() for folder in folders]
    for one in resolved:
        for other in resolved:
            if one is not other and (one == other or one in other.parents):
                raise ValueError(f"{other} lies within {one}: the sides of a split have to be separate folders")
    names = _short_names(resolved)
    images: list[AuditImage] = []
    sides: dict[str, list[int]] = {}
    not_read: list[str] = []
    num_masks = 0
    for folder, name in zip(folders, names, strict=True):
        paths = walk(folder)
        masks = {path for path in paths if _is_mask(path, folder)}
        found = [path for path in paths if is_image(path) and path not in masks and not _is_full_folder(path)]
        if not found:
            raise FileNotFoundError(f"{folder}: no image in it")
        sides[name] = list(range(len(images), len(images) + len(found)))
        for path in found:
            relative = path.relative_to(folder)
            tumour_class = relative.parent.as_posix() if len(relative.parts) > 1 else ""
            images.append(AuditImage(path, f"{name}/{relative.as_posix()}", path.name, tumour_class))
        not_read += unused_images(folder, [*found, *masks], not_needed=not_needed)
        num_masks += len(masks)
    splits = [Split(" and ".join(names), sides)] if len(folders) > 1 else []
    notes = [] if splits else ["Only one folder was given: nothing can cross a split."]
    if num_masks:
        notes.append(f"{num_masks} file(s) are taken for masks by their names, and not looked at.")
    return AuditInput(" and ".join(names), images, splits, notes=notes, not_read=not_read)


def _is_mask(path: Path, folder: Path) -> bool:
    parents = {part.lower() for part in path.relative_to(folder).parts[:-1]}
    stem = path.name.partition(".")[0].lower()
    return not path.is_dir() and is_image(path) and bool(parents & _MASK_FOLDERS or stem.endswith(("_mask", "_seg")))


def _is_full_folder(path: Path) -> bool:
    """Whether a path is a folder with something in it; an empty one that is named as an image should be one."""
    return path.is_dir() and any(path.iterdir())


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Returns as much of the folders' paths, from their ends, as tells them apart."""
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if max(Counter(names).values()) == 1 or depth > max(len(folder.parts) for folder in folders):
            return names
        depth += 1


def default_output(title: str) -> Path:
    """Returns `./audit_<name>` for a data set or folders of that title."""
    return Path(f"audit_{re.sub(r'[^A-Za-z0-9_-]+', '_', title).strip('_')}")
