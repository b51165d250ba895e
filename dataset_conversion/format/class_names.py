"""One spelling for every class name, whatever the source calls it, so that data sets of several sources agree.

BRISC writes `gl`, `me`, `pi` and `no` (its README: `nt`) in file names, the Kaggle sets name folders `notumor`,
`no_tumor` or `glioma_tumor`, BraTS speaks of `GLI`, `MEN` and `MET`. `dataset.json` and `cases.csv` hold the canonical
names only. Names of other classes are kept, also those that mean healthy in some language.
"""

import re
import unicodedata
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


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text.replace("ł", "l")) if not unicodedata.combining(c))


_HEALTHY = frozenset(
    _without_accents(
        """
        control controls healthy_control healthy_controls hc lesion_free no_abnormality no_finding no_findings
        no_lesion normal_brain normals tumor_free unaffected unremarkable
        gesund gesunde kein_befund kein_tumor keine_laesion kontrolle kontrollen normalbefund ohne_befund ohne_tumor
        tumorfrei unauffallig unauffaellig
        controle controles normale normaux pas_de_tumeur sain saine sains sans_tumeur temoin temoins
        controllo controlli nessun_tumore sana sani sano senza_tumore
        control_sano normales sanos sin_tumor
        normais saudavel saudaveis sem_tumor
        controlegroep geen_tumor gezond normaal
        frisk friska friske ingen_tumor kontroll kontrol normalt terve
        bez_guza kontrola norma prawidlowy zdrowa zdrowi zdrowy
        bez_nadoru zdrava zdravy zdravi
        egeszseges fara_tumora kontroll sanatos saglam saglikli tumor_yok
        здоров здоровые здоровый контроль норма без_опухоли
        健康 正常 無腫瘍 无肿瘤
        """
    ).split()
)
"""Words for healthy beside the aliases of `no_tumor`, without accents. They name the negative class, unchanged."""


def canonical_name(name: str) -> str:
    """Returns the canonical name of a class: `No Tumour` and `nt` become `no_tumor`.

    A name that no source here uses is kept, in lower case and with underscores: a hospital may have its own classes.

    Raises:
        ValueError: the name holds no letter or digit.
    """
    lower = unicodedata.normalize("NFC", name).strip().lower()
    spelling = re.sub(r"[^\w+]+", "_", lower).strip("_").replace("tumour", "tumor")
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


def means_healthy(name: str) -> bool:
    """Tells whether a class name is a usual word for healthy: `no_tumor`, `Gesund`, `control`, …"""
    spelling = canonical_name(name)
    plain = "".join(c for c in unicodedata.normalize("NFKD", spelling) if not unicodedata.combining(c)).replace(
        "ł", "l"
    )
    return spelling == NEGATIVE_CLASS or plain in _HEALTHY


def unified_schema(names: Iterable[str], negative_class: str | None = None) -> ClassSchema:
    """Makes the class schema of several sources.

    Args:
        names: class names in any spelling, repeated or not.
        negative_class: the healthy one, in any spelling; None: the one that is called so, see `means_healthy`.

    Returns:
        The canonical names, in canonical order; names of other classes, sorted, stand before `tumor` and the negative
        class.

    Raises:
        ValueError: fewer than two classes, several words for healthy among them, or no class of that name.
    """
    found = {canonical_name(name) for name in names}
    if negative_class is not None:
        healthy = [canonical_name(negative_class)]
        if healthy[0] not in found:
            raise ValueError(f"the negative class {negative_class!r} is none of the classes {', '.join(sorted(found))}")
    else:
        healthy = [NEGATIVE_CLASS] if NEGATIVE_CLASS in found else sorted(filter(means_healthy, found))
    if len(healthy) > 1:
        raise ValueError(
            f"the classes {' and '.join(healthy)} both mean healthy; give them one name, or say which one is the "
            "negative class (--negative-class)"
        )
    last = (UNSPECIFIC_CLASS, *healthy)
    ordered = [name for name in CANONICAL_NAMES if name in found and name not in last]
    ordered += sorted(found - set(CANONICAL_NAMES) - set(healthy)) + [name for name in last if name in found]
    return ClassSchema(tuple(ordered), healthy[0] if healthy else None)
