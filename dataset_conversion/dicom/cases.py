"""Studies as cases to predict: the series of each channel, on the grid of one of them, as nnU-Net names its files."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from braintum.conversion.dicom.channels import Choice, choose_series
from braintum.conversion.dicom.series import SeriesFiles
from braintum.conversion.dicom.study import FoundSeries, find_series
from braintum.conversion.files.volumes import VolumeError, geometry_differences, write_image

_LEAST_COVERED = 0.5
"""Share of the reference's voxels that another channel has to cover."""


@dataclass(frozen=True, eq=False)
class StudyCase:
    """A study that is predicted as a case.

    Attributes:
        name: of the case, and of its files.
        reference: the series on whose grid channels and mask are; `reference.read()` gives the objects to refer to.
        channels: channel -> series, and why.
        notes: what was done to the channels.
        ending: of the files of channels and mask.
    """

    name: str
    reference: SeriesFiles
    channels: Mapping[str, Choice] = field(repr=False)
    notes: tuple[str, ...] = ()
    ending: str = ".nii.gz"

    def mask_file(self, output: Path) -> Path:
        """The mask that prediction writes."""
        return output / f"{self.name}{self.ending}"

    def class_file(self, output: Path) -> Path:
        """The class result that prediction writes; a model without classes writes none."""
        return output / "classes" / f"{self.name}.json"

    def lines(self) -> list[str]:
        """Every decision with its reason."""
        chosen = [f"  {name}: '{one.series.title}', {one.reason}" for name, one in self.channels.items()]
        return [f"{self.name}:", *chosen, *(f"  {note}" for note in self.notes)]


@dataclass
class StudyCases:
    """What :func:`write_cases` wrote.

    Attributes:
        cases: to predict.
        left_out: file, series or case -> what is wrong with it.
        not_needed: series, or copy of a file -> why it was not used.
        num_series: that were readable.
    """

    cases: list[StudyCase] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    not_needed: dict[str, str] = field(default_factory=dict)
    num_series: int = 0


def write_cases(
    source: Path,
    channels: Sequence[str],
    folder: Path,
    patterns: Mapping[str, str] | None = None,
    per_study: Mapping[str, Mapping[str, str]] | None = None,
    reference: str | None = None,
    ending: str = ".nii.gz",
    rename: Callable[[str], str] = str,
) -> StudyCases:
    """Writes the studies in a folder or ZIP archive as volumes `CASE_0000.nii.gz`, …

    Args:
        source: see :func:`braintum.conversion.dicom.study.find_series`.
        channels: of the model, in order.
        folder: that gets the files.
        patterns: channel -> pattern; see :func:`braintum.conversion.dicom.channels.choose_series`.
        per_study: StudyInstanceUID, or name of a case -> patterns of its own, which go before `patterns`.
        reference: the channel whose grid is used; None for the first.
        ending: of the files.
        rename: name of a case, with patient and date -> the name to use.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a pattern, or the reference, is of no channel of the model.
    """
    patterns = dict(patterns or {})
    if unknown := ({*patterns, *([reference] if reference else [])} - set(channels)):
        raise ValueError(f"the model has no channel {min(unknown)}; its channels are {', '.join(channels)}")
    rows = per_study or {}
    found = find_series(source)
    written = StudyCases(left_out=dict(found.left_out), num_series=len(found.series))
    written.not_needed |= {file: f"a copy of {first}" for file, first in found.copies.items()}
    for name, uid, study in _studies(found):
        own, name = rows.get(uid, rows.get(name, {})), rename(name)
        try:
            chosen = choose_series(study, channels, {**patterns, **own})
            case = _write(name, chosen, reference or channels[0], folder, ending)
        except VolumeError as error:
            written.left_out[name] = str(error)
            continue
        written.cases.append(case)
        taken = [id(choice.series) for choice in chosen.values()]
        for series in study:
            if id(series) not in taken:
                written.not_needed[f"{name}: {series.title}"] = "no channel of the model"
    return written


def _studies(found: FoundSeries) -> list[tuple[str, str, list[SeriesFiles]]]:
    """Name of the case, StudyInstanceUID and series of each study."""
    studies: dict[tuple[str, str], list[SeriesFiles]] = defaultdict(list)
    for series in found.series:
        studies[series.text("PatientID"), series.text("StudyInstanceUID")].append(series)
    named: dict[str, list[tuple[str, list[SeriesFiles]]]] = defaultdict(list)
    for (patient, uid), of_study in studies.items():
        name = "_".join(filter(None, (patient, of_study[0].text("StudyDate")))) or "study"
        named[re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "study"].append((uid, of_study))
    return [
        (name if len(several) == 1 else f"{name}_{number}", uid, of_study)
        for name, several in named.items()
        for number, (uid, of_study) in enumerate(several, start=1)
    ]


def _write(name: str, chosen: Mapping[str, Choice], reference: str, folder: Path, ending: str) -> StudyCase:
    first = chosen[reference].series.read().image
    notes = [f"grid: that of {reference}"] if len(chosen) > 1 else []
    frame = chosen[reference].series.text("FrameOfReferenceUID")
    images = []
    for channel, choice in chosen.items():
        image = first if channel == reference else choice.series.read().image
        if channel != reference and (differences := geometry_differences(first, image)):
            if choice.series.text("FrameOfReferenceUID") != frame:
                raise VolumeError(
                    f"{channel} ('{choice.series.title}') has another frame of reference than {reference}: their "
                    "positions cannot be compared (the patient was moved); register one to the other, and predict NIfTI"
                )
            image = _on_grid(image, first, channel, reference)
            notes.append(f"{channel} resampled onto it, linearly, by its header: {'; '.join(differences)}")
        images.append(image)
    for number, image in enumerate(images):
        write_image(image, folder / f"{name}_{number:04d}{ending}")
    return StudyCase(name, chosen[reference].series, chosen, tuple(notes), ending)


def _on_grid(image: sitk.Image, reference: sitk.Image, channel: str, name: str) -> sitk.Image:
    ones = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    covered = sitk.GetArrayFromImage(sitk.Resample(ones, reference, sitk.Transform(), sitk.sitkNearestNeighbor))
    if (share := float(np.mean(covered))) < _LEAST_COVERED:
        raise VolumeError(f"{channel} covers only {share:.0%} of {name}; choose series of one region with --channel")
    return sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
