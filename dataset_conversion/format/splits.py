"""Cross-validation splits that never put one patient on both sides, in nnU-Net's `splits_final.json` format."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from braintum.conversion.files.json_files import read_json
from braintum.conversion.format.cases import Case

logger = logging.getLogger(__name__)

Splits = list[dict[str, list[str]]]
"""One entry a fold: `{"train": [case, …], "val": [case, …]}`."""

SPLITS_FILE = "splits_final.json"


def read_splits(path: Path, remedy: str = "write it again") -> Splits:
    """Reads `splits_final.json`.

    Args:
        path: the file.
        remedy: the end of a message about it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not of nnU-Net's format.
    """
    splits = read_json(path, remedy)
    valid = isinstance(splits, list) and all(
        isinstance(split, dict) and all(isinstance(split.get(side), list) for side in ("train", "val"))
        for split in splits
    )
    if not valid:
        raise ValueError(f'{path}: has to be a list of objects with the lists "train" and "val"; {remedy}')
    return splits


def _training_cases(cases: Iterable[Case]) -> list[Case]:
    """Returns the cases outside of the source's test parts, sorted by name: results must not depend on the order."""
    chosen = sorted((case for case in cases if case.split == "train"), key=lambda case: case.case)
    repeated = [name for name, count in Counter(case.case for case in chosen).items() if count > 1]
    if repeated:
        raise ValueError(f"case {repeated[0]!r} occurs {sum(case.case == repeated[0] for case in chosen)} times")
    return chosen


def group_cases(cases: Iterable[Case]) -> list[list[str]]:
    """Sorts training cases into groups that have to stay together: see `tied_cases`.

    Args:
        cases: all cases; those of the source's test parts (`split` is not `train`) are left out.

    Raises:
        ValueError: a case occurs twice.
    """
    return tied_cases(_training_cases(cases))


def tied_cases(cases: Iterable[Case]) -> list[list[str]]:
    """Sorts cases into groups that are not independent of each other.

    Cases that share a patient or a (non-empty) group belong together, also through others: a – patient 1 – b –
    group x – c makes one group of a, b and c. A case with neither is a group of its own.

    Returns:
        The groups' case names, sorted within and by their first.
    """
    from scipy.cluster.hierarchy import DisjointSet  # here: it takes a moment, and most who read splits need none

    tied = DisjointSet()
    for case in cases:
        node = ("case", case.case)
        tied.add(node)
        for tie in (("patient", case.patient), ("group", case.group)):
            if tie[1]:
                tied.add(tie)
                tied.merge(node, tie)
    return sorted(sorted(name for kind, name in group if kind == "case") for group in tied.subsets())


def patient_splits(cases: Iterable[Case], n_splits: int = 5, seed: int = 12345) -> Splits:
    """Makes class-stratified folds that keep each patient and each near-duplicate group on one side.

    Args:
        cases: all cases; those of the source's test parts (`split` is not `train`) are left out. The result does not
            depend on their order.
        n_splits: number of folds, reduced (with a warning) to the number of groups where there are fewer.
        seed: nnU-Net's own default.

    Returns:
        nnU-Net's splits, case names sorted.

    Raises:
        ValueError: fewer than two folds are asked for, or fewer than two groups are there.
    """
    # imported here: it takes about a second, and most commands need no splits
    from sklearn.model_selection import StratifiedGroupKFold

    if n_splits < 2:
        raise ValueError(f"n_splits has to be at least 2, not {n_splits}")
    chosen = _training_cases(cases)
    groups = group_cases(chosen)
    if len(groups) < 2:
        raise ValueError(
            f"{len(chosen)} training cases of {len(groups)} patient(s) or group(s) cannot be split: "
            "at least 2 patients or groups are needed; add cases of others"
        )
    if len(groups) < n_splits:
        logger.warning("only %d patients or groups: making %d splits instead of %d", *2 * (len(groups),), n_splits)
        n_splits = len(groups)

    group_of = {name: number for number, group in enumerate(groups) for name in group}
    class_numbers = {name: number for number, name in enumerate(sorted({case.tumour_class for case in chosen}))}
    classes = [class_numbers[case.tumour_class] for case in chosen]
    if max(Counter(classes).values()) < n_splits:
        classes = [0] * len(chosen)  # every class has too few cases for sklearn to stratify by it
    folds = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed)
    group_numbers = [group_of[case.case] for case in chosen]
    fold_of_group: dict[int, int] = {}
    with warnings.catch_warnings():
        # some class has fewer cases than folds: nothing to be done about it
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, validation) in enumerate(folds.split(classes, classes, group_numbers)):
            fold_of_group.update((group_numbers[i], fold) for i in validation)
    _fill_empty_folds(fold_of_group, n_splits, groups)
    return official_splits({name: fold_of_group[number] for name, number in group_of.items()})


def splits_by_patient(names: Iterable[str], cases: Mapping[str, Case], seed: int, n_splits: int) -> Splits | None:
    """Splits where there are none yet; None where no patient and no group is known.

    Args:
        names: of the preprocessed cases.
        cases: rows of ``cases.csv``, as far as there are any.
        seed: nnU-Net's.
        n_splits: number of folds.
    """
    rows = [cases.get(name, Case(name)) for name in names]
    if not any(row.patient or row.group for row in rows):
        return None
    return patient_splits(rows, n_splits, seed)


def _fill_empty_folds(fold_of_group: dict[int, int], n_splits: int, groups: Sequence[Sequence[str]]) -> None:
    """Gives an empty fold the smallest group of the fold with the most groups.

    StratifiedGroupKFold places groups greedily by class balance alone and may leave a fold empty.
    """
    for fold in range(n_splits):
        counts = Counter(fold_of_group.values())
        if fold not in counts:
            fullest = min(counts, key=lambda other: (-counts[other], other))
            candidates = [group for group, other in fold_of_group.items() if other == fullest]
            fold_of_group[min(candidates, key=lambda group: (len(groups[group]), group))] = fold


def official_splits(fold_of_case: Mapping[str, int]) -> Splits:
    """Makes splits of given folds: split i validates on the cases of the i-th fold number that occurs.

    Args:
        fold_of_case: case name -> fold number; numbers may start anywhere and have gaps.

    Raises:
        ValueError: fewer than two folds occur.
    """
    folds = sorted(set(fold_of_case.values()))
    if len(folds) < 2:
        raise ValueError(f"at least 2 folds are needed for cross-validation, got {len(folds)}: {folds}")
    names = sorted(fold_of_case)
    return [
        {
            "train": [name for name in names if fold_of_case[name] != fold],
            "val": [name for name in names if fold_of_case[name] == fold],
        }
        for fold in folds
    ]


def find_crossings(splits: Splits, cases: Iterable[Case]) -> list[list[str]]:
    """Returns the groups of cases (see `group_cases`) that some split puts on both sides."""
    sides = [(set(split["train"]), set(split["val"])) for split in splits]
    return [
        group
        for group in group_cases(cases)
        if any(not train.isdisjoint(group) and not val.isdisjoint(group) for train, val in sides)
    ]


def check_splits(splits: Splits, cases: Iterable[Case]) -> None:
    """Checks that splits are a cross-validation of these cases without leaks.

    Args:
        splits: in nnU-Net's format.
        cases: all cases; those of the source's test parts (`split` is not `train`) must not occur in the splits.

    Raises:
        ValueError: a case is unknown, missing, validated twice, or on both sides; or a patient or near-duplicate
            group is on both sides. The message names an example.
    """
    chosen = _training_cases(cases)
    known = {case.case for case in chosen}
    validated: Counter[str] = Counter()
    for number, split in enumerate(splits):
        counts = Counter(split["train"] + split["val"])
        _refuse(f"split {number}: unknown case", counts.keys() - known)
        _refuse(f"split {number}: case missing", known - counts.keys())
        _refuse(f"split {number}: case listed twice", {name for name, count in counts.items() if count > 1})
        validated.update(split["val"])
    _refuse("case validated in more than one split", {name for name, count in validated.items() if count > 1})
    _refuse("case validated in no split", known - validated.keys())
    crossings = find_crossings(splits, chosen)
    if crossings:
        raise ValueError(
            f"{len(crossings)} patients or groups are on both sides of a split, for example the one of "
            f"{', '.join(crossings[0][:4])}; make the splits by patient"
        )


def _refuse(fault: str, names: Iterable[str]) -> None:
    ordered = sorted(names)
    if ordered:
        raise ValueError(f"{fault}: {ordered[0]}" + (f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""))
