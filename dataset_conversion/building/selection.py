"""Which images belong together, and which cases a conversion takes: `--fraction`."""

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from braintum.conversion.format.cases import Case
from braintum.conversion.format.splits import group_cases

logger = logging.getLogger(__name__)

MAX_NAMES = 3
"""Of more examples than this a message shows only the first."""


def byte_identical_groups(paths: Sequence[Path]) -> list[list[int]]:
    """Finds files with the same content.

    Args:
        paths: the files.

    Returns:
        Positions in `paths` of the files of each group of two or more, sorted.
    """
    of_size: dict[int, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        if path.is_file():  # no broken link, no folder
            of_size[path.stat().st_size].append(number)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for numbers in of_size.values():
        if len(numbers) > 1:  # a file of unique size has no twin, and need not be read
            for number in numbers:
                groups[hashlib.sha256(paths[number].read_bytes()).digest()].append(number)
    return sorted(group for group in groups.values() if len(group) > 1)


def contradicting_classes(cases: Sequence[Case], paths: Sequence[Path]) -> tuple[list[str], set[int]]:
    """Finds byte-identical images of different classes.

    Args:
        cases: class of each image.
        paths: the images.

    Returns:
        One problem a pair, with both names and the remedy; and the positions of all images that are such copies.
    """
    problems = []
    copies: set[int] = set()
    for group in byte_identical_groups(paths):
        first_of_class: dict[str, int] = {}
        for number in group:
            if cases[number].tumour_class:
                first_of_class.setdefault(cases[number].tumour_class, number)
        if len(first_of_class) < 2:
            continue
        copies.update(group)
        first, *others = first_of_class.values()
        problems += [
            f"{paths[first]}: is {cases[first].tumour_class}, but its identical copy {paths[other]} is "
            f"{cases[other].tumour_class}; remove the wrong one, or both"
            for other in others
        ]
    return problems, copies


def assign_groups(cases: Sequence[Case], paths: Sequence[Path], n_processes: int) -> list[Case]:
    """Gives images of the same slice a common `group`, so that no split separates them.

    Args:
        cases: one an image.
        paths: the images.
        n_processes: number of worker processes.

    Returns:
        The cases; a group is named after its first case, and a case without duplicates has none.
    """
    # imported here: the search loads scipy, and most commands do not need it
    from braintum.conversion.duplicates.duplicates import near_duplicate_groups

    groups = near_duplicate_groups(paths, n_processes)
    _warn_of_classes(cases, groups)
    names = [case.case for case in cases]
    group_of = {number: names[group[0]] for group in groups for number in group}
    return [replace(case, group=group_of.get(number, "")) for number, case in enumerate(cases)]


def join_groups(cases: Sequence[Case], *ties: Sequence[str]) -> list[Case]:
    """Gives cases that are tied in any way, directly or through others, a common `group`.

    Args:
        cases: the cases; their own groups are replaced.
        ties: what belongs together, in several ways: a name for each case, empty for none.

    Returns:
        The cases; a group is named after its first case, and a case that is tied to no other has none.
    """
    group_of = {case.case: "" for case in cases}
    for tie in ties:
        marked = (
            Case(case.case, patient=group_of[case.case], group=name) for case, name in zip(cases, tie, strict=True)
        )
        for unit in group_cases(marked):
            if len(unit) > 1:
                group_of.update(dict.fromkeys(unit, unit[0]))
    return [replace(case, group=group_of[case.case]) for case in cases]


def _warn_of_classes(cases: Sequence[Case], groups: Sequence[Sequence[int]]) -> None:
    """Logs which groups hold several classes: either a class is wrong, or the images are not of the same slice."""
    mixed = [group for group in groups if len({cases[number].tumour_class for number in group} - {""}) > 1]
    for group in mixed[:MAX_NAMES]:
        logger.warning(
            "these show the same slice, but are of different classes: %s",
            ", ".join(f"{cases[number].source} ({cases[number].tumour_class or 'unknown'})" for number in group),
        )
    if len(mixed) > MAX_NAMES:
        logger.warning("… and %d more groups of copies of different classes", len(mixed) - MAX_NAMES)


def warn_of_leaks(cases: Sequence[Case]) -> list[list[str]]:
    """Logs which patients or groups the source's own parts put into both training and test.

    Returns:
        Their case names.
    """
    part = {case.case: case.split for case in cases}
    leaks = [unit for unit in _units(cases) if len({part[name] for name in unit}) > 1]
    if leaks:
        examples = ["/".join(_one_of_each_part(unit, part)) for unit in leaks[:MAX_NAMES]]
        logger.warning(
            "the source's own test part leaks: %d patient(s) or group(s) of images of the same slice are in both "
            "training and test part (%s%s); results on the test part are too good. --pool makes splits without leaks",
            len(leaks),
            ", ".join(examples),
            ", …" if len(leaks) > MAX_NAMES else "",
        )
    return leaks


def _one_of_each_part(names: Sequence[str], part: Mapping[str, str]) -> list[str]:
    return [next(name for name in names if part[name] == side) for side in sorted({part[name] for name in names})]


def select_fraction(cases: Sequence[Case], fraction: float, seed: int) -> list[Case]:
    """Chooses a random share of the patients, each with all its cases.

    Where the patient is unknown, groups of near-duplicates are chosen, and cases without either one by one. The share
    is the same for each class and for training and test part, as exactly as whole patients allow, and at least one
    patient of each. The same seed chooses the same patients on every machine, and a larger fraction adds to what a
    smaller one chose.

    Args:
        cases: all cases.
        fraction: above 0, at most 1.
        seed: chooses which.

    Returns:
        The chosen cases, in the given order.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction has to be above 0 and at most 1, not {fraction:g}; change --fraction")
    if fraction == 1:
        return list(cases)
    by_name = {case.case: case for case in cases}
    strata: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for unit in _units(cases):
        members = [by_name[name] for name in unit]
        # the patient's most frequent class; of two equally frequent ones the first in the alphabet
        counts = Counter(case.tumour_class for case in members)
        tumour_class = min(counts, key=lambda name: (-counts[name], name))
        strata[max(case.split for case in members), tumour_class].append(unit)
    chosen: set[str] = set()
    for units in strata.values():
        units.sort(key=lambda unit: hashlib.sha256(f"{seed} {_unit_name(unit, by_name)}".encode()).digest())
        number = max(1, math.floor(fraction * len(units) + 0.5))
        chosen.update(name for unit in units[:number] for name in unit)
    logger.info("%d of %d cases chosen (fraction %g, seed %d)", len(chosen), len(cases), fraction, seed)
    return [case for case in cases if case.case in chosen]


def _units(cases: Iterable[Case]) -> list[list[str]]:
    """Like `group_cases`, but with the test part."""
    return group_cases(replace(case, split="train") for case in cases)


def _unit_name(unit: Sequence[str], by_name: Mapping[str, Case]) -> str:
    patients = sorted({by_name[name].patient for name in unit} - {""})
    return f"patient {patients[0]}" if patients else f"case {unit[0]}"
