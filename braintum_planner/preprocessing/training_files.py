"""Images and label map of every training case."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

_CHANNEL_DIGITS = 4


def training_files(raw_folder: Path, dataset_json: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What nnU-Net's ``get_filenames_of_train_images_and_targets`` returns, in time linear in the number of files.

    nnU-Net compares every case with every file, in twelve processes: seconds for some thousand slices.

    Args:
        raw_folder: ``nnUNet_raw/DatasetXXX_Name``.
        dataset_json: its ``dataset.json``.

    Returns:
        Case -> ``images`` (channels in order) and ``label``.

    Raises:
        FileNotFoundError: there is no ``imagesTr``, or it holds no image of the data set's ending.
    """
    if "dataset" in dataset_json:  # the data set lists its files itself
        return get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
    ending = dataset_json["file_ending"]
    folder = raw_folder / "imagesTr"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; put the training images there, named CASE_0000{ending}, …")
    images = defaultdict(list)
    for path in sorted(folder.glob("[!.]*")):
        case, separator, channel = path.name.removesuffix(ending).rpartition("_")
        if path.name.endswith(ending) and separator and len(channel) == _CHANNEL_DIGITS and channel.isdecimal():
            images[case].append(str(path))
    if not images:
        raise FileNotFoundError(
            f"{folder} holds no image named CASE_0000{ending}; check file_ending in {raw_folder / 'dataset.json'}, "
            "and that each name ends with the channel's four digits"
        )
    labels = raw_folder / "labelsTr"
    return {case: {"images": images[case], "label": str(labels / f"{case}{ending}")} for case in sorted(images)}
