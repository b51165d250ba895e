"""Looks for what makes the results on a data set wrong: duplicates and patients on both sides of a split, bad files.

What counts as a leak: an image, one of its duplicates (see `duplicates`), or its patient on two sides of a split.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from braintum.commands.provenance import provenance
from braintum.conversion.audit.audit_input import AuditImage, AuditInput, Split
from braintum.conversion.duplicates.duplicates import DuplicatePair, group_pairs, match_fingerprints
from braintum.conversion.duplicates.fingerprints import Fingerprint, fingerprint
from braintum.conversion.duplicates.image_reading import UnreadableImageError, read_grey, read_labels
from braintum.conversion.files.parallel import run_cases

logger = logging.getLogger(__name__)

FORMAT = "braintum-audit"
VERSION = 1


@dataclass(frozen=True)
class Crossing:
    """What belongs together and is on several sides of a split.

    Attributes:
        what: `case`, `duplicates`, `patient` or `group`.
        name: of the patient or group; of duplicates and cases the first image's name.
        members: names of images, by side.
    """

    what: str
    name: str
    members: dict[str, list[str]]


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        name: of the split.
        crossings: what is on several of its sides.
        pairs: indices of the pairs of duplicates (in `Audit.pairs`) that cross it.
        balance: images of each class, by side.
        largest_difference: how far a class's proportion on some side is from that on all sides, in percentage points.
    """

    name: str
    crossings: list[Crossing]
    pairs: list[int]
    balance: dict[str, dict[str, int]]
    largest_difference: float


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        source: what was looked at.
        pairs: duplicates: indices of images, kind, score.
        groups: of images that are duplicates of each other, directly or through others.
        splits: one report a split.
        image_problems: name of an image -> what is wrong with it.
        mask_problems: name of an image -> how its mask contradicts its class, or is not usable.
        unreadable: names of the images of which a file, the label map included, could not be read.
    """

    source: AuditInput
    pairs: list[DuplicatePair]
    groups: list[list[int]]
    splits: list[SplitReport]
    image_problems: dict[str, str]
    mask_problems: dict[str, str]
    unreadable: tuple[str, ...] = ()

    @property
    def leaks(self) -> bool:
        """Something is on several sides of a split."""
        return any(split.crossings for split in self.splits)

    @property
    def num_left_out(self) -> int:
        """Images that could not be read, or were not looked at."""
        return len(self.unreadable) + len(self.source.not_read)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `audit.json`."""
        names = [image.name for image in self.source.images]
        crossed: dict[int, list[str]] = defaultdict(list)
        for split in self.splits:
            for index in split.pairs:
                crossed[index].append(split.name)
        return {
            "format": FORMAT,
            "version": VERSION,
            "provenance": provenance(),
            "title": self.source.title,
            "images": len(names),
            "leaks": self.leaks,
            "notes": self.source.notes,
            "pairs": [
                {
                    "first": names[pair.first],
                    "second": names[pair.second],
                    "kind": pair.kind,
                    "transformation": pair.transformation,
                    "score": pair.score,
                    "crosses": crossed[index],
                }
                for index, pair in enumerate(self.pairs)
            ],
            "groups": [[names[index] for index in group] for group in self.groups],
            "splits": [
                {
                    "name": split.name,
                    "crossing_pairs": len(split.pairs),
                    "crossings": [
                        {"what": crossing.what, "name": crossing.name, "members": crossing.members}
                        for crossing in split.crossings
                    ],
                    "class_balance": split.balance,
                    "largest_difference_percentage_points": round(split.largest_difference, 2),
                }
                for split in self.splits
            ],
            "image_problems": self.image_problems,
            "mask_problems": self.mask_problems,
            "unreadable": list(self.unreadable),
            "not_read": self.source.not_read,
        }


@dataclass(frozen=True)
class _Inspection:
    fingerprint: Fingerprint
    image_problem: str = ""
    mask_problem: str = ""
    unreadable: bool = False


def run_audit(source: AuditInput, n_processes: int) -> Audit:
    """Audits images and splits.

    Args:
        source: what to look at.
        n_processes: number of worker processes; 1 stays in this process.

    Raises:
        OSError: a file vanished or may not be read.
    """
    inspect = partial(_inspect, source=replace(source, images=[], splits=[]))  # it goes to every worker
    inspections = run_cases(inspect, source.images, n_processes, "reading")
    pairs = match_fingerprints([inspection.fingerprint for inspection in inspections])
    groups = group_pairs(pairs)
    results = list(zip((image.name for image in source.images), inspections, strict=True))
    return Audit(
        source,
        pairs,
        groups,
        splits=[_report_split(split, source.images, pairs, groups) for split in source.splits],
        image_problems={name: result.image_problem for name, result in results if result.image_problem},
        mask_problems={name: result.mask_problem for name, result in results if result.mask_problem},
        unreadable=tuple(name for name, result in results if result.unreadable),
    )


def _inspect(image: AuditImage, source: AuditInput) -> _Inspection:
    read = fingerprint(image.path)
    unreadable = bool(read.problem)
    problems = []
    if read.problem:
        problems.append(read.problem.removeprefix(f"{image.path}: "))
    elif read.is_constant:
        problems.append("empty: all pixels have one value")
    for path in image.channels:
        try:
            if read_grey(path).is_constant:
                problems.append(f"{path.name} is empty: all pixels have one value")
        except UnreadableImageError as error:
            problems.append(f"{path.name}{str(error).removeprefix(str(path))}")
            unreadable = True
    try:
        mask_problem = _mask_problem(image, source)
    except UnreadableImageError as error:
        mask_problem = f"label map {image.mask.name if image.mask else ''}{str(error).removeprefix(str(image.mask))}"
        unreadable = True
    return _Inspection(read, "; ".join(problems), mask_problem, unreadable)


def _mask_problem(image: AuditImage, source: AuditInput) -> str:
    if image.mask is None:
        return ""
    if not image.mask.is_file():
        return "has no label map"
    labels = read_labels(image.mask)
    counts = dict(zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True))
    problems = []
    if source.label_values is not None and (unknown := [value for value in counts if value not in source.label_values]):
        found = ", ".join(f"{counts[value]} voxels of {value:g}" for value in unknown[:5])
        problems.append(
            f"{image.mask.name} holds {found}, which dataset.json does not declare: write the label that is meant, or "
            "declare it"
        )
    tumour = sum(number for value, number in counts.items() if value not in (0, source.ignore_label))
    if image.tumour_class and image.tumour_class == source.negative_class and tumour:
        problems.append(f"a mask on {image.tumour_class}: {tumour} pixels")
    elif image.tumour_class not in ("", source.negative_class) and not tumour and source.ignore_label not in counts:
        problems.append(f"no mask on {image.tumour_class}")
    return "; ".join(problems)


def _report_split(
    split: Split, images: Sequence[AuditImage], pairs: Sequence[DuplicatePair], groups: Sequence[Sequence[int]]
) -> SplitReport:
    sides_of: dict[int, set[str]] = defaultdict(set)
    for side, members in split.sides.items():
        for index in members:
            sides_of[index].add(side)
    crossings = [
        Crossing("case", images[index].name, {side: [images[index].name] for side in sorted(sides)})
        for index, sides in sorted(sides_of.items())
        if len(sides) > 1
    ]
    crossings += _crossing_sets("duplicates", groups, split, images)
    for attribute in ("patient", "group"):
        crossings += _crossing_sets(attribute, _sharing(images, attribute), split, images)
    crossing_pairs = [
        index
        for index, pair in enumerate(pairs)
        if sides_of[pair.first] and sides_of[pair.second] and len(sides_of[pair.first] | sides_of[pair.second]) > 1
    ]
    balance, difference = _balance(split, images)
    return SplitReport(split.name, crossings, crossing_pairs, balance, difference)


def _crossing_sets(
    what: str, belonging: Sequence[Sequence[int]], split: Split, images: Sequence[AuditImage]
) -> list[Crossing]:
    """Returns the sets of images that belong together, by duplication or by an attribute, and are on several sides."""
    members_of = {side: set(members) for side, members in split.sides.items()}
    crossings = []
    for indices in belonging:
        members = {side: [index for index in indices if index in members_of[side]] for side in split.sides}
        members = {side: found for side, found in members.items() if found}
        distinct = {index for found in members.values() for index in found}
        if len(members) > 1 and len(distinct) > 1:  # a case of its own on both sides is reported as such
            first = images[indices[0]]
            name = first.name if what == "duplicates" else getattr(first, what)
            named = {side: [images[index].name for index in found] for side, found in members.items()}
            crossings.append(Crossing(what, name, named))
    return crossings


def _sharing(images: Sequence[AuditImage], attribute: str) -> list[list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if getattr(image, attribute):
            members[getattr(image, attribute)].append(index)
    return list(members.values())


def _balance(split: Split, images: Sequence[AuditImage]) -> tuple[dict[str, dict[str, int]], float]:
    """Returns the images of each class by side, and the largest difference of proportions in percentage points."""
    names = sorted({images[index].tumour_class for members in split.sides.values() for index in members})
    counts = {side: Counter(images[index].tumour_class for index in members) for side, members in split.sides.items()}
    total: Counter[str] = sum(counts.values(), Counter())
    difference = 0.0
    for count in counts.values():
        if count:
            for name in names:
                proportion = count[name] / count.total() - total[name] / total.total()
                difference = max(difference, 100 * abs(proportion))
    return {side: {name or "unknown": count[name] for name in names} for side, count in counts.items()}, difference
