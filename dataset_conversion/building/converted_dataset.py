"""A converted data set in `nnUNet_raw`, read back: what describes it, and where the files of its cases are."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import DATASET_FILE, STATE_FILE
from braintum.conversion.files.json_files import label_values, read_dataset_json
from braintum.conversion.format.cases import CASES_FILE, FOLDER_ENDINGS, Case, ClassSchema, read_cases

logger = logging.getLogger(__name__)

IGNORE = "ignore"
"""nnU-Net's name of the label that no loss and no metric looks at."""


@dataclass(frozen=True)
class ConvertedDataset:
    """A data set whose conversion is finished.

    Attributes:
        folder: `nnUNet_raw/DatasetXXX_Name`.
        dataset_json: the content of `dataset.json`.
        schema: its classes; None without any.
        cases: its cases.
        unlisted: what is wrong with images that `cases.csv` says nothing of.
    """

    folder: Path
    dataset_json: Mapping[str, Any]
    schema: ClassSchema | None
    cases: tuple[Case, ...]
    unlisted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name without `DatasetXXX_`."""
        return self.folder.name.partition("_")[2]

    @property
    def label_values(self) -> frozenset[int]:
        """All values that a label map may hold."""
        return frozenset(label_values(self.dataset_json["labels"]))

    @property
    def ignore_label(self) -> int | None:
        """The value of the ignore label; None without one."""
        return self.dataset_json["labels"].get(IGNORE)

    @property
    def is_2d(self) -> bool:
        """Whether its cases are slices, by one of its label maps where the file ending leaves it open."""
        if self.dataset_json["file_ending"] == ".png":
            return True
        import SimpleITK as sitk  # noqa: N813

        from braintum.conversion.files.volumes import first_undamaged

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(first_undamaged(self.files(case)[-1] for case in self.cases)))
        reader.ReadImageInformation()
        return sum(size > 1 for size in reader.GetSize()) == 2

    def files(self, case: Case) -> list[Path]:
        """The images of a case, in the order of the channels, and last its label map."""
        end, ending = FOLDER_ENDINGS[case.split], self.dataset_json["file_ending"]
        images = [
            self.folder / f"images{end}" / f"{case.case}_{channel:04d}{ending}"
            for channel in range(len(self.dataset_json["channel_names"]))
        ]
        return [*images, self.folder / f"labels{end}" / f"{case.case}{ending}"]


def read_converted(raw_folder: Path, dataset_id: int) -> ConvertedDataset:
    """Reads what describes a converted data set.

    Raises:
        FileNotFoundError: there is no data set of this number, or it lacks a file.
        SourceError: there are several, its conversion is not finished, or a file cannot be read.
    """
    folders = sorted(path for path in raw_folder.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"{raw_folder}: no data set {dataset_id}; convert it first, or give another number")
    if len(folders) > 1:
        raise SourceError(f"{folders[0]}: {folders[1].name} has the same number; rename or remove one of them")
    folder = folders[0]
    if (folder / STATE_FILE).exists():
        raise SourceError(f"{folder}: its conversion is not finished; repeat the command that began it")
    for name in (DATASET_FILE, CASES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: there is no such file; convert the data set again")
    try:
        content = read_dataset_json(folder / DATASET_FILE, "convert the data set again")
        schema = ClassSchema.from_dataset_json(content)
        if "channel_names" not in content:
            raise ValueError(f"{folder / DATASET_FILE}: has no channel_names; convert the data set again")
    except ValueError as error:
        message = str(error) if str(folder) in str(error) else f"{folder / DATASET_FILE}: {error}"
        raise SourceError(message) from error
    dataset = ConvertedDataset(
        folder,
        content,
        schema,
        tuple(read_cases(folder / CASES_FILE, schema.class_names if schema else None).values()),
    )
    cases = tuple(case for case in dataset.cases if case.split == "train" or dataset.files(case)[-1].is_file())
    if not cases:
        raise SourceError(f"{folder / CASES_FILE}: holds no cases; convert the data set again")
    if len(cases) < len(dataset.cases):
        logger.warning("%s: %d test cases without a label map are left out", folder, len(dataset.cases) - len(cases))
    return replace(dataset, cases=cases, unlisted=tuple(_unlisted_images(dataset)))


def _unlisted_images(dataset: ConvertedDataset) -> list[str]:
    """Returns what is wrong where there are images that cases.csv says nothing of."""
    listed = {case.case for case in dataset.cases}
    end = f"_0000{dataset.dataset_json['file_ending']}"
    return [
        f"{image}: {dataset.folder / CASES_FILE} does not list it; convert the data set again, or add its row"
        for kind in FOLDER_ENDINGS.values()
        for image in sorted((dataset.folder / f"images{kind}").glob(f"[!.]*{end}"))
        if image.name.removesuffix(end) not in listed
    ]
