"""What labels and classes are called in DICOM: codes of SNOMED CT and of the NCI Thesaurus, and colours.

A name that no table here holds gets a code of the private scheme ``99BRAINTUM``, as the standard has it for local codes
(PS3.16, chapter 8), and keeps its name as meaning.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from braintum.conversion.format.class_names import canonical_name
from braintum.conversion.format.label_names import BRATS_LABELS, BRATS_REGIONS

PRIVATE_SCHEME = "99BRAINTUM"

ANATOMY = codes.SCT.Brain
CATEGORY = codes.SCT.MorphologicallyAbnormalStructure
NEOPLASM = codes.SCT.Neoplasm

# the segment types of CID 7159, "Lesion Segmentation Type"
_LABELS = {
    "non_enhancing": codes.cid7159.NonEnhancingLesion,
    "enhancing": codes.cid7159.EnhancingLesion,
    "oedema": codes.cid7159.Edema,
    "edema": codes.cid7159.Edema,
    "necro": codes.cid7159.Necrosis,
}

_CLASSES = {
    "glioma": Code("393564001", "SCT", "Glioma"),
    "glioblastoma": codes.SCT.Glioblastoma,
    "meningioma": Code("302820008", "SCT", "Intracranial meningioma"),
    "pituitary": Code("254956000", "SCT", "Pituitary adenoma"),
    "metastasis": codes.SCT.NeoplasmSecondary,
    "tumor": NEOPLASM,
    "no_tumor": codes.SCT.Normal,
}

_COLOURS = (  # sRGB: red, yellow, green, blue, magenta, cyan, as BraTS's viewers have the first three
    (220, 50, 47),
    (235, 200, 40),
    (60, 170, 80),
    (60, 110, 220),
    (200, 70, 200),
    (50, 190, 190),
)


def private_code(name: str) -> Code:
    """A local code; its value may have 16 characters at most, so that of longer names ends in a hash."""
    value = name.upper().replace(" ", "_")
    if len(value) > 16:
        value = f"{value[:9]}_{hashlib.sha256(name.encode()).hexdigest()[:6].upper()}"
    return Code(value, PRIVATE_SCHEME, name.replace("_", " ")[:64])


def label_code(name: str) -> Code:
    """The type of a segment."""
    spelling = canonical_name(name.partition(" without ")[0])
    return next((code for part, code in _LABELS.items() if part in spelling), NEOPLASM)


def class_code(name: str) -> Code:
    """The finding that a class is."""
    return _CLASSES.get(canonical_name(name)) or private_code(name)


def colour(number: int) -> tuple[int, int, int]:
    """Of the number-th segment, from 0: sRGB."""
    return _COLOURS[number % len(_COLOURS)]


def disjoint_labels(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Value in a mask → name; of a model of nested regions, what is left of each region without those in it."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    if labels == BRATS_REGIONS:
        return {value: name for name, value in BRATS_LABELS.items() if value != 0}
    regions = {name: set(value) if isinstance(value, (list, tuple)) else {value} for name, value in labels.items()}
    named = {}
    for value in sorted(set.union(*regions.values()) - {0}):
        innermost = min((name for name in regions if value in regions[name]), key=lambda name: len(regions[name]))
        inside = [name for name, region in regions.items() if region < regions[innermost]]
        named[value] = f"{innermost} without {' and '.join(inside)}" if inside else innermost
    return named
