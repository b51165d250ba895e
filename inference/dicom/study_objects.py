"""A predicted study as DICOM objects: from the files of the prediction and the series that the mask lies on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from braintum.commands.provenance import PROVENANCE_FILE
from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.dicom.cases import StudyCase
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.files.volumes import geometry_differences
from braintum.inference.dicom.objects import DEFAULT_KINDS, UsedModel, write_objects

OBJECTS_FOLDER = "dicom"


@dataclass(frozen=True)
class ObjectOptions:
    """What to write.

    Attributes:
        kinds: of :data:`braintum.inference.dicom.kinds.KINDS`.
        labelmap: a Label Map Segmentation in place of a binary one.
        pseudonyms: in place of the patient's and study's identity.
    """

    kinds: Collection[str] = DEFAULT_KINDS
    labelmap: bool = False
    pseudonyms: Pseudonyms | None = None


def write_study_objects(
    case: StudyCase,
    output: Path,
    options: ObjectOptions,
    card: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the objects of a study into ``dicom/<case>`` within the output folder.

    Args:
        case: the study.
        output: folder of the prediction, with mask, class, ``dataset.json`` and ``provenance.json``.
        options: what to write.
        card: of a ready model.

    Returns:
        The files that were written.

    Raises:
        ValueError: the mask is not on the grid of the series, or see :func:`write_objects`.
        FileNotFoundError: the study was not predicted.
    """
    series = case.reference.read()
    mask = sitk.ReadImage(str(case.mask_file(output)))
    if differences := geometry_differences(series.image, mask):
        raise ValueError(f"{case.mask_file(output)} is not on the grid of its series: {'; '.join(differences)}")
    others = sorted(
        {
            str(frame.facts["SOPInstanceUID"])
            for choice in case.channels.values()
            if choice.series is not case.reference
            for frame in choice.series.frames
        }
    )
    identities = read_json_object(output / PROVENANCE_FILE)
    folder = output / OBJECTS_FOLDER / case.name
    folder.mkdir(parents=True, exist_ok=True)
    return write_objects(
        series,
        sitk.GetArrayFromImage(mask),
        read_json_object(case.class_file(output)),
        folder,
        dataset_json=read_json_object(output / "dataset.json"),
        model=UsedModel.of({name: identities[name] for name in ("model", "class_model") if name in identities}, card),
        others=others,
        kinds=options.kinds,
        labelmap=options.labelmap,
        pseudonyms=options.pseudonyms,
    )
