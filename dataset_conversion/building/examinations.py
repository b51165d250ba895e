"""Which volumes of a hospital's folder belong together, and which of them a pattern means.

A patient's folder is one examination if each channel's pattern fits one volume in it. Otherwise its sub-folders are
examinations, if at least two of them hold all channels; the same holds below them. Where names of files and folders do
not say what a DICOM series is (numbered folders, all files of an export in one), the patterns are compared with
SeriesDescription, ProtocolName and SequenceName, and series of several studies in one folder are told apart by
PatientID and study.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from braintum.conversion.building.volume_reading import DicomVolume, Volume, dicom_files, dicom_series
from braintum.conversion.files.folders import subfolders, walk
from braintum.conversion.files.volumes import is_volume_file
from braintum.conversion.format.dates import iso_date


@dataclass(frozen=True)
class Examination:
    """What patterns match in a folder.

    Attributes:
        folder: of the patient, or of one of several examinations.
        chosen: channel -> the volumes that match its pattern.
        masks: that match the masks' pattern.
        volumes: all volumes.
        patient: PatientID, where the series of several studies lie in the folder.
        date: of the study, likewise.
    """

    folder: Path
    chosen: Mapping[str, Sequence[Volume]]
    masks: Sequence[Volume] = ()
    volumes: Sequence[Volume] = field(default=(), repr=False)
    patient: str = ""
    date: str = ""

    def parts(self, source: Path) -> tuple[str, ...]:
        """Names of the folders from the source's to this one; of a study in it, PatientID and date at the end."""
        return (*self.folder.relative_to(source).parts, *filter(None, (self.patient, self.date)))

    def names_within(self) -> tuple[str, ...]:
        """Names of the folders and the file of its first channel, which may say the date."""
        volumes = next(iter(self.chosen.values()))
        return place_of(volumes[0]).relative_to(self.folder).parts if volumes else ()

    def faults(self) -> list[str]:
        """What keeps it from being a case: folder, fault and remedy."""
        wanted = {**self.chosen, **({"mask": self.masks} if len(self.masks) > 1 else {})}
        return [self._fault(name, volumes) for name, volumes in wanted.items() if len(volumes) != 1]

    def _fault(self, name: str, volumes: Sequence[Volume]) -> str:
        if not volumes:
            there = self._listed(self.volumes) or "no volumes at all"
            return f"{self.folder}: no file for {name}; there is {there}: change its pattern, or add the file"
        there = self._listed(volumes)
        return f"{self.folder}: several files for {name}: {there}; make its pattern narrower, or remove one"

    def _listed(self, volumes: Iterable[Volume]) -> str:
        names = []
        for volume in volumes:
            place = place_of(volume).relative_to(self.folder).as_posix()
            series = "" if isinstance(volume, Path) else volume.title
            names.append(f"{place} ({series})" if series and place != "." else series or place)
        return ", ".join(names)


def place_of(volume: Volume) -> Path:
    """Returns the file or folder of a volume."""
    return volume if isinstance(volume, Path) else Path(str(volume.files[0])).parent


def find_examinations(folder: Path, patterns: Mapping[str, str], mask: str | None) -> list[Examination]:
    """Finds the examinations in a patient's folder; see the module's docstring.

    Args:
        folder: of the patient.
        patterns: channel -> pattern, which is compared with names; one with a slash with the path within the folder.
        mask: the masks' pattern; None: there are none.

    Returns:
        One or more, those that cannot be cases included.
    """
    whole = _match(folder, patterns, mask)
    found = [volume for volumes in whole.chosen.values() for volume in volumes]
    if all(len(volumes) == 1 for volumes in whole.chosen.values()):
        return [whole]
    parts = [_match(path, patterns, mask) for path in subfolders(folder) if path not in found]
    complete = [part for part in parts if all(part.chosen.values())]
    loose = [volume for volume in found if not any(place_of(volume).is_relative_to(part.folder) for part in parts)]
    if not loose and (len(complete) > 1 or (complete and not found)):
        inside = [part.folder for part in parts if any(part.chosen.values())]
        return [examination for path in inside for examination in find_examinations(path, patterns, mask)]
    series = [volume for volume in found if not isinstance(volume, Path)]
    studies = sorted(set(map(_study, series)))
    if len(series) == len(found) and len(studies) > 1:
        return [_of_study(whole, *study) for study in studies]
    return [whole]


def _of_study(whole: Examination, patient: str, study: str) -> Examination:
    def within(volumes: Sequence[Volume]) -> list[DicomVolume]:
        series = [volume for volume in volumes if not isinstance(volume, Path)]
        return [one for one in series if _study(one) == (patient, study)]

    chosen = {name: within(volumes) for name, volumes in whole.chosen.items()}
    date = next(iso_date(series.facts.get("StudyDate", "")) for volumes in chosen.values() for series in volumes)
    volumes = within(whole.volumes)
    return replace(
        whole, chosen=chosen, masks=within(whole.masks), volumes=volumes, patient=patient, date=date or study
    )


def _study(volume: DicomVolume) -> tuple[str, str]:
    return str(volume.facts.get("PatientID", "")), str(volume.facts.get("StudyInstanceUID", ""))


def _match(folder: Path, patterns: Mapping[str, str], mask: str | None) -> Examination:
    """Compares the patterns with names; those that fit none, with the descriptions of DICOM series."""
    volumes = find_volumes(folder)
    masks: Sequence[Volume] = _named(volumes, mask, folder) if mask else []
    others = [path for path in volumes if path not in masks]
    chosen: dict[str, Sequence[Volume]] = {name: _named(others, text, folder) for name, text in patterns.items()}
    if all(chosen.values()) and (masks or not mask):
        return Examination(folder, chosen, masks, volumes)
    taken = {*masks, *(volume for found in chosen.values() for volume in found)}
    places = [path for path in volumes if path.is_dir() and not is_volume_file(path) and path not in taken]
    series = [one for place in places for one in dicom_series(place)]
    if mask and not masks:
        masks = _described(series, mask)
    series = [one for one in series if one not in masks]
    chosen = {name: found or _described(series, patterns[name]) for name, found in chosen.items()}
    return Examination(folder, chosen, masks, [*(path for path in volumes if path not in places), *series])


def find_volumes(folder: Path) -> list[Path]:
    """Returns the volumes in a folder and below: files, and folders with DICOM files."""
    paths = walk(folder)
    # broken links and folders of such names too, for reading them to fail and to say so
    files = [path for path in paths if is_volume_file(path)]
    places = [path for path in (folder, *paths) if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    return sorted({*files, *(place for place in places if dicom_files(place))})


def _named(volumes: Sequence[Path], pattern: str, folder: Path) -> list[Path]:
    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix() if "/" in pattern else path.name

    return [path for path in volumes if fnmatchcase(name(path).lower(), pattern.lower())]


def _described(series: Sequence[DicomVolume], pattern: str) -> list[DicomVolume]:
    return [one for one in series if any(fnmatchcase(name.lower(), pattern.lower()) for name in one.names)]
