"""What all converters share: a new data set in `nnUNet_raw`, all or nothing, and resumable.

A converter (see `figshare.py`) goes through these steps:

1. `RawDataset.open`: is the data-set number free, or is there an unfinished conversion of the same source?
2. `inspect_cases` (`inspection.py`): reads and checks every case; all problems of the source are reported at once.
3. `RawDataset.begin`, then `RawDataset.write_cases`: writes images and label maps that are not there yet.
4. `RawDataset.finish`: `cases.csv`, `splits_final.json`, and last `dataset.json`, without which nnU-Net does not
   take the folder for a data set.

Nothing is written before every check has passed, so that a dry run is the first two steps.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from braintum.commands.errors import InputError
from braintum.commands.provenance import PROVENANCE_FILE, command_line, versions
from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.files.atomic import PARTIAL_PREFIX, remove_partial_files, sync_disks, write_json_atomic
from braintum.conversion.files.disk import explain_unwritable
from braintum.conversion.files.json_files import read_json
from braintum.conversion.files.parallel import default_processes, run_cases
from braintum.conversion.format.cases import CASES_FILE, FOLDER_ENDINGS, Case, write_cases
from braintum.conversion.format.splits import SPLITS_FILE, Splits

logger = logging.getLogger(__name__)

STATE_FILE = "conversion_in_progress.json"
DATASET_FILE = "dataset.json"
LEFT_OUT_FILE = "left_out.json"

Item = TypeVar("Item")


class DatasetTakenError(InputError):
    """The data-set number or its folder is in use."""


@dataclass(frozen=True)
class ConversionRequest:
    """What every conversion is told, whatever its source.

    Attributes:
        source: the folder that holds the source in its original layout.
        raw_folder: `nnUNet_raw`.
        dataset_id: 1 to 999.
        name: the data set's name, without `Dataset` and number.
        dry_run: check everything, write nothing.
        n_processes: number of worker processes; 1 converts in this process.
        overwrite: replace a data set of the same number and name.
        other_folders: further folders in which the number must not belong to another name: `nnUNet_preprocessed`
            and `nnUNet_results`. nnU-Net refuses a number that has two names.
        fraction: the share of the patients (or groups, or cases) to convert, above 0, at most 1; see `selection.py`.
        seed: chooses which, if `fraction` is below 1.
        pseudonyms: replace the identifiers of cases and patients; None keeps them.
        strict: a faulty case stops the conversion before anything is written; otherwise it is left out and listed.
        not_needed: patterns of images in the source that are not meant to be used, so that nobody has to be told.
    """

    source: Path
    raw_folder: Path
    dataset_id: int
    name: str
    dry_run: bool = False
    n_processes: int = field(default_factory=default_processes)
    overwrite: bool = False
    other_folders: tuple[Path, ...] = ()
    fraction: float = 1.0
    seed: int = 42
    pseudonyms: Pseudonyms | None = None
    strict: bool = True
    not_needed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.dataset_id <= 999:
            raise ValueError(f"the data-set number has to be 1 to 999, not {self.dataset_id}; choose another -d")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ValueError(f"the name {self.name!r} may hold letters, digits, _ and - only; choose another --name")
        if self.n_processes < 1:
            raise ValueError(f"the number of processes has to be at least 1, not {self.n_processes}; change -np")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"the fraction has to be above 0 and at most 1, not {self.fraction:g}; change --fraction")
        if not self.source.is_dir():
            raise FileNotFoundError(f"{self.source}: no such folder; give the folder of the unpacked source")

    @property
    def dataset_name(self) -> str:
        """The name of the data set's folder."""
        return f"Dataset{self.dataset_id:03d}_{self.name}"


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        folder: the data set's folder (not there after a dry run).
        table: the summary, plain text.
        n_cases: number of cases.
        configuration: nnU-Net's configuration for the data: `2d` for slices, `3d_fullres` for volumes.
        has_classes: whether the data set declares classes.
        problems: of the cases that were left out, each naming file, fault and remedy; empty if the request is strict.
        unused: images of the source that no case was made of, likewise; see `folders.unused_images`.
    """

    folder: Path
    table: str
    n_cases: int
    configuration: str = "2d"
    has_classes: bool = True
    problems: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def raw_folder_from_environment() -> Path:
    """Returns the folder that the environment variable nnUNet_raw names.

    Raises:
        ValueError: it is not set.
    """
    value = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    if not value:
        raise ValueError("the environment variable nnUNet_raw is not set; type: export nnUNet_raw=/path/to/nnUNet_raw")
    return Path(value)


class RawDataset:
    """A data set in `nnUNet_raw` that is being written.

    It is built in its own folder, together with a file that says what is being converted; the same conversion
    continues there after an interruption. A data set that is to be replaced stays untouched until the new one, built
    in a hidden folder beside it, is complete.

    Attributes:
        folder: where the data set is in the end.
        build_folder: where it is built.
        file_ending: of images and label maps.
        pseudonyms: what cases are named by; None: by the converters' names, by which the methods know them anyway.
    """

    def __init__(
        self,
        folder: Path,
        build_folder: Path,
        state: Mapping[str, Any],
        file_ending: str,
        resumes: bool,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self.folder = folder
        self.build_folder = build_folder
        self.file_ending = file_ending
        self.pseudonyms = pseudonyms
        self._state = dict(state)
        self._resumes = resumes

    @classmethod
    def open(
        cls,
        request: ConversionRequest,
        kind: str,
        options: Mapping[str, Any] | None = None,
        file_ending: str = ".nii.gz",
    ) -> "RawDataset":
        """Checks that the data set can be written; writes nothing.

        Args:
            request: source, number and name.
            kind: the kind of source, as the command names it.
            options: the source's own options, JSON types only: a conversion is resumed only with the same ones.
            file_ending: of images and label maps.

        Raises:
            DatasetTakenError: the number belongs to another data set, or the folder is in use.
        """
        if request.pseudonyms is not None:
            request.pseudonyms.check_place(request.raw_folder)
        prefix = f"Dataset{request.dataset_id:03d}_"
        for parent in (request.raw_folder, *request.other_folders):
            for other in sorted(parent.glob(f"{prefix}*")):
                if other.is_dir() and other.name != request.dataset_name:
                    raise DatasetTakenError(
                        f"{other}: data-set number {request.dataset_id} is taken; choose another -d, or remove the "
                        f"folder, or give its name: --name {other.name.removeprefix(prefix)}"
                    )
        state = {"kind": kind, "source": str(request.source.resolve()), "options": dict(options or {})}
        if request.fraction < 1:
            state["selection"] = {"fraction": request.fraction, "seed": request.seed}
        if request.pseudonyms is not None:
            state["pseudonyms"] = request.pseudonyms.fingerprint
        names = request.pseudonyms
        folder = request.raw_folder / request.dataset_name
        replacement = folder.with_name(f".new_{folder.name}")
        if not folder.exists() and _read_state(replacement) == state:  # killed while it took the place of the old one
            return cls(folder, replacement, state, file_ending, resumes=True, pseudonyms=names)
        if not folder.exists() or _is_empty(folder):
            return cls(folder, folder, state, file_ending, resumes=False, pseudonyms=names)
        if folder.is_dir() and _read_state(folder) == state:
            return cls(folder, folder, state, file_ending, resumes=True, pseudonyms=names)
        if not request.overwrite:
            if not (folder / STATE_FILE).exists():
                raise DatasetTakenError(
                    f"{folder}: already taken; choose another -d, or replace the data set with --overwrite"
                )
            raise DatasetTakenError(
                f"{folder}: holds an unfinished conversion of another source or with other options "
                f"({STATE_FILE} says which); finish that one, or replace it with --overwrite, or choose another -d"
            )
        return cls(folder, replacement, state, file_ending, _read_state(replacement) == state, names)

    def begin(self, cases: Sequence[Case]) -> None:
        """Makes the folders, or clears up an interrupted conversion: half-written files and vanished cases.

        Args:
            cases: all cases; folders for a test part are made only where there is one.

        Raises:
            OSError: the folder cannot be written to.
        """
        if not self._resumes and self.build_folder.exists():
            shutil.rmtree(self.build_folder)
        if not self._resumes and self.pictures_folder.exists():
            shutil.rmtree(self.pictures_folder)
        self.build_folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(self.build_folder)
        write_json_atomic(self.build_folder / STATE_FILE, self._state)
        for split, ending in FOLDER_ENDINGS.items():
            expected = {self._name(case) for case in cases if case.split == split}
            for kind in ("images", "labels"):
                folder = self.build_folder / (kind + ending)
                if expected:
                    folder.mkdir(exist_ok=True)
                if not folder.exists():
                    continue
                remove_partial_files(folder)
                for path in folder.iterdir():
                    name = path.name.removesuffix(self.file_ending)
                    if (name.rpartition("_")[0] if kind == "images" else name) not in expected:
                        path.unlink()
        if self._resumes:
            logger.info("resuming the interrupted conversion in %s", self.build_folder)

    def image_path(self, case: Case, channel: int = 0) -> Path:
        """Returns where one channel of a case is written: imagesTr, or the folder of a test part."""
        folder = "images" + FOLDER_ENDINGS[case.split]
        return self.build_folder / folder / f"{self._name(case)}_{channel:04d}{self.file_ending}"

    def label_path(self, case: Case) -> Path:
        """Returns where the label map of a case is written: labelsTr, or the folder of a test part."""
        return self.build_folder / ("labels" + FOLDER_ENDINGS[case.split]) / f"{self._name(case)}{self.file_ending}"

    @property
    def pictures_folder(self) -> Path:
        """Where pictures are written that are for people: beside the data set, where nnU-Net does not look."""
        return self.folder.with_name(f"registration_{self.folder.name}")

    def picture_path(self, case: Case) -> Path:
        """Returns where the picture of a volume's registration is written."""
        return self.pictures_folder / f"{self._name(case)}.png"

    def _provenance(self) -> dict[str, Any]:
        """What the data set depends on, and nothing else: the same source and options give the same bytes."""
        source = () if self.pseudonyms is not None else (self._state["source"],)
        return {
            "command": command_line(["braintum_convert", self._state["kind"], *source]),
            "versions": versions(),
            "options": None if self.pseudonyms is not None else self._state["options"],
            "selection": self._state.get("selection"),
            "pseudonymised": self.pseudonyms is not None,
        }

    def _name(self, case: Case) -> str:
        return case.case if self.pseudonyms is None else self.pseudonyms.name(case.case)

    def is_done(self, case: Case, source: Path | Iterable[Path], n_channels: int = 1) -> bool:
        """Tells whether all files of a case are there, and none is older than its source (or one of its sources)."""
        sources = [source] if isinstance(source, Path) else list(source)
        paths = [self.image_path(case, channel) for channel in range(n_channels)] + [self.label_path(case)]
        changed = max(path.stat().st_mtime_ns for path in sources)
        return all(path.is_file() and path.stat().st_mtime_ns >= changed for path in paths)

    def write_cases(self, write: Callable[[Item], None], items: Sequence[Item], n_processes: int) -> None:
        """Writes cases; after an error or an interruption the same conversion continues where this one stopped.

        Args:
            write: module-level function that writes image and label map of one case, each atomically.
            items: what it is called with: the cases that are not done.
            n_processes: number of worker processes.

        Raises:
            UnwritableFolderError: the disk is full, or the folder read-only.
            OSError: a worker process was killed.
        """
        try:
            run_cases(write, items, n_processes, "converting")
        except Exception:
            explain_unwritable(self.build_folder, "The cases written so far are kept: repeat the command to go on")
            logger.warning("%s is not complete; the same command continues the conversion", self.build_folder)
            raise
        except BaseException:
            logger.warning("%s is not complete; the same command continues the conversion", self.build_folder)
            raise

    def finish(
        self, cases: Sequence[Case], splits: Splits, dataset_json: Mapping[str, Any], problems: Sequence[str] = ()
    ) -> None:
        """Writes `cases.csv`, `splits_final.json` and `dataset.json`, and moves a replacement to its place.

        Without splits there is no `splits_final.json`. Where cases or images were left out, `left_out.json` lists why,
        unless the data set is pseudonymised, and its key list is written then.

        Args:
            cases: all cases.
            splits: of the training cases.
            dataset_json: the content of `dataset.json` apart from `numTraining` and `file_ending`.
            problems: of cases and images that were left out.
        """
        if self.pseudonyms is not None:
            self.pseudonyms.write_keys(self.folder.name, cases)
            cases, splits = self.pseudonyms.cases(cases), self.pseudonyms.splits(splits)
            dataset_json = self.pseudonyms.dataset_json(dataset_json)
        content = dict(dataset_json)
        content["numTraining"] = sum(case.split == "train" for case in cases)
        content["file_ending"] = self.file_ending
        write_cases(self.build_folder / CASES_FILE, cases)
        if splits:
            write_json_atomic(self.build_folder / SPLITS_FILE, splits)
        if problems and self.pseudonyms is None:  # they name files, and those patients
            folder = self._state["source"] + os.sep
            write_json_atomic(self.build_folder / LEFT_OUT_FILE, [problem.replace(folder, "") for problem in problems])
        write_json_atomic(self.build_folder / PROVENANCE_FILE, self._provenance())
        sync_disks()  # dataset.json says that all is there: after a power failure, too
        write_json_atomic(self.build_folder / DATASET_FILE, content)
        replaced = self.folder.with_name(f".old_{self.folder.name}")
        if self.build_folder != self.folder:
            if self.folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                self.folder.rename(replaced)
            self.build_folder.rename(self.folder)
        (self.folder / STATE_FILE).unlink()
        if replaced.exists():
            shutil.rmtree(replaced)


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a process left that was killed at once."""
    return folder.is_dir() and all(path.name.startswith(PARTIAL_PREFIX) for path in folder.iterdir())


def _read_state(folder: Path) -> Any:
    """Returns what an unfinished conversion in this folder converts; None if there is none."""
    try:
        return read_json(folder / STATE_FILE, "the conversion is not resumed")
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s", error)
        return None
