"""Splits checked when training starts: cases that are not there, and patients on both sides."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold

from braintum.conversion.format.cases import Case
from braintum.conversion.format.splits import Splits, tied_cases

_SHOWN = 5
_REMEDY = "delete the file, and training splits by the patients of cases.csv"


def splits_by_image(names: Iterable[str], cases: Mapping[str, Case], seed: int, n_splits: int) -> Splits:
    """Splits of single images with equal shares of the classes, as papers make them: patients are on both sides.

    Args:
        names: of the preprocessed cases.
        cases: rows of ``cases.csv``, as far as there are any.
        seed: of the shuffle.
        n_splits: number of folds.
    """
    ordered = np.array(sorted(names))
    classes = [cases.get(name, Case(name)).tumour_class for name in ordered]
    kind = StratifiedKFold if max(Counter(classes).values()) >= n_splits else KFold  # too few for equal shares
    folds = kind(n_splits, shuffle=True, random_state=seed).split(ordered, classes)
    return [{"train": ordered[train].tolist(), "val": ordered[val].tolist()} for train, val in folds]


def check_known(training: Sequence[str], validation: Sequence[str], known: Collection[str], place: str) -> None:
    """Refuse a split that names other cases than the preprocessed ones.

    Args:
        training: case names.
        validation: case names.
        known: names of all preprocessed cases.
        place: file and fold, for messages.

    Raises:
        ValueError: a side is empty, or names a case that is not there.
    """
    for side, names in (("train", training), ("val", validation)):
        if not names:
            raise ValueError(f'{place}: "{side}" names no case; fill it, or {_REMEDY}')
    known = set(known)
    unknown = sorted({str(name) for name in [*training, *validation] if name not in known})
    if not unknown:
        return
    if meant := {_case_name(name) for name in unknown} & known:
        raise ValueError(
            f"{place} names files, not cases: {_listed(unknown)}; write case names, without the channel's number and "
            f"the ending, such as {sorted(meant)[0]}"
        )
    raise ValueError(
        f"{place} names {len(unknown)} case(s) that are not among the {len(known)} preprocessed ones: "
        f"{_listed(unknown)}; where they were removed on purpose, remove them here too or {_REMEDY}; else preprocess "
        "the data set again"
    )


def check_leaks(training: Sequence[str], validation: Sequence[str], cases: Mapping[str, Case], place: str) -> None:
    """Refuse a split with a patient, a group of copies, or a case on both sides.

    Args:
        training: case names.
        validation: case names.
        cases: rows of ``cases.csv``, as far as there are any.
        place: file and fold, for messages.

    Raises:
        ValueError: naming the cases.
    """
    sides = set(training), set(validation)
    rows = {name: Case(name) for name in set.union(*sides)} | dict(cases)
    crossing = [found for group in tied_cases(rows.values()) if all(found := [sorted(s & {*group}) for s in sides])]
    if crossing:
        examples = "; ".join(
            f"{_of_patient(names, rows)}train {_listed(train)}, val {_listed(val)}"
            for names, (train, val) in ((left + right, (left, right)) for left, right in crossing[:_SHOWN])
        )
        raise ValueError(
            f"{place}: {len(crossing)} patient(s) or group(s) of copies are on both sides, so its validation is too "
            f"good: {examples}{' …' if len(crossing) > _SHOWN else ''}. Split by patient ({_REMEDY}), or set "
            "braintum_allow_leaks=1 to train all the same"
        )


def _of_patient(names: Iterable[str], rows: Mapping[str, Case]) -> str:
    patients = sorted({rows[name].patient for name in names} - {""})
    return f"patient {', '.join(patients)}: " if patients else ""


def _case_name(file: str) -> str:
    """Case of an image's or a label map's file name."""
    return re.sub(r"_\d{4}$", "", re.sub(r"(\.[a-z0-9]{1,5})+$", "", Path(file).name, flags=re.IGNORECASE))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
