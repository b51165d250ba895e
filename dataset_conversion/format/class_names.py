"""One spelling for every class name, whatever the source calls it, so that data sets of several sources agree.

BRISC writes `gl`, `me`, `pi` and `no` (its README: `nt`) in file names, the Kaggle sets name folders `notumor`,
`no_tumor` or `glioma_tumor`, BraTS speaks of `GLI`, `MEN` and `MET`. `dataset.json` and `cases.csv` hold the canonical
names only.
"""

import re
from collections.abc import Iterable

from braintum.conversion.format.cases import ClassSchema

NEGATIVE_CLASS = "no_tumor"
UNSPECIFIC_CLASS = "tumor"
"""The class of sources that only tell tumour from none."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "glioma": ("gl", "gli", "glioma_tumor", "ssa"),
    "high_grade_glioma": ("hgg", "high_grade"),
    "low_grade_glioma": ("lgg", "low_grade"),
    "glioblastoma": ("gbm", "glioblastoma_multiforme"),
    "astrocytoma": (),
    "oligoastrocytoma": (),
    "oligodendroglioma": (),
    "pediatric_glioma": ("ped", "pediatric", "paediatric", "paediatric_glioma"),
    "meningioma": ("me", "men", "meningioma_tumor"),
    "pituitary": ("pi", "pit", "pituitary_tumor", "pituitary_adenoma"),
    "metastasis": ("met", "mets", "metastases", "metastatic", "brain_metastasis", "brain_metastases"),
    UNSPECIFIC_CLASS: ("yes", "tumors", "positive"),
    NEGATIVE_CLASS: ("no", "nt", "notumor", "none", "normal", "healthy", "negative"),
}
"""Canonical name -> other spellings; the order is the order of classes in combined data sets."""

CANONICAL_NAMES = tuple(_ALIASES)
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases)}


def canonical_name(name: str) -> str:
    """Returns the canonical name of a class: `No Tumour` and `nt` become `no_tumor`.

    A name that no source here uses is kept, in lower case and with underscores: a hospital may have its own classes.

    Raises:
        ValueError: the name holds no letter or digit.
    """
    spelling = re.sub(r"[^a-z0-9+]+", "_", name.strip().lower()).strip("_").replace("tumour", "tumor")
    if not spelling:
        raise ValueError(f"class name {name!r} holds no letter or digit")
    return _CANONICAL.get(spelling, spelling)


def known_name(name: str) -> str | None:
    """Returns the canonical name of a class, or None where `name` is not a spelling of any known one."""
    try:
        found = canonical_name(name)
    except ValueError:
        return None
    return found if found in CANONICAL_NAMES else None


def unified_schema(names: Iterable[str]) -> ClassSchema:
    """Makes the class schema of several sources.

    Args:
        names: class names in any spelling, repeated or not.

    Returns:
        The canonical names, in canonical order; names of other classes, sorted, stand before `tumor` and `no_tumor`.

    Raises:
        ValueError: fewer than two classes.
    """
    found = {canonical_name(name) for name in names}
    last = (UNSPECIFIC_CLASS, NEGATIVE_CLASS)
    ordered = [name for name in CANONICAL_NAMES if name in found and name not in last]
    ordered += sorted(found - set(CANONICAL_NAMES)) + [name for name in last if name in found]
    return ClassSchema(tuple(ordered), NEGATIVE_CLASS if NEGATIVE_CLASS in found else None)
