"""What a model found in a series, and what all objects made of it have in common."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification
from pydicom.sr.codedict import codes

from braintum.commands.provenance import content_hash
from braintum.commands.version import __version__
from braintum.conversion.dicom.series import Series
from braintum.inference.dicom.codes import disjoint_labels

DISCLAIMER = "research use, not for diagnosis"
MANUFACTURER = "braintum"

_NAMESPACE = uuid.UUID("3b0f7f0e-6d0c-4f4e-9a55-2a4a0a1c5d21")
_LONGEST_TEXT = 64  # of DICOM's "long string"


@dataclass(frozen=True)
class UsedModel:
    """The model that predicted.

    Attributes:
        name: of the model.
        version: of the model.
        checksum: over the weights.
    """

    name: str
    version: str
    checksum: str

    @classmethod
    def of(cls, identities: Mapping[str, Any], card: Mapping[str, Any] | None = None) -> "UsedModel":
        """A model by what ``provenance.json`` says of it.

        Args:
            identities: ``model`` and perhaps ``class_model``, see
                :func:`braintum.inference.models.model_identity.model_identity`.
            card: of a ready model.
        """
        identity = identities["model"]
        checksum = content_hash([identities[name]["weights"] for name in sorted(identities)])
        if card is not None:
            return cls(card["name"], card["version"], checksum)
        return cls(f"{identity['trainer']}, {identity['plans']}", identity["plans_hash"][:16], checksum)


@dataclass(frozen=True, eq=False)
class PredictedSeries:
    """A prediction on the grid of a series.

    Attributes:
        series: that the mask lies on.
        mask: (Z, Y, X), integers, as ``series.image``.
        dataset_json: of the model, with its labels.
        result: what ``classes/<case>.json`` holds.
        model: that predicted.
        others: SOPInstanceUID of the images of further channels.
    """

    series: Series
    mask: np.ndarray = field(repr=False)
    dataset_json: Mapping[str, Any]
    result: Mapping[str, Any]
    model: UsedModel
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        expected = self.series.image.GetSize()[::-1]
        if self.mask.shape != expected:
            raise ValueError(
                f"the mask has the shape {self.mask.shape}, but the series {self.series.description!r} has {expected}; "
                "resample the mask onto the series"
            )
        unknown = sorted({int(value) for value in np.unique(self.mask)} - {0, *disjoint_labels(self.dataset_json)})
        if unknown:
            raise ValueError(f"the mask holds {unknown}, which are no labels of the model; is it of another model?")

    @cached_property
    def segments(self) -> dict[int, str]:
        """Value in the mask → name, of what is there."""
        present = set(np.unique(self.mask).tolist())
        return {value: name for value, name in disjoint_labels(self.dataset_json).items() if value in present}

    @property
    def first_instance(self) -> pydicom.Dataset:
        """From which patient and study are copied."""
        return self.series.instances[0]

    @cached_property
    def _fingerprint(self) -> str:
        """Of all that the objects are made from."""
        images = sorted([*self.others, *(str(instance.SOPInstanceUID) for instance in self.series.instances)])
        result = {name: value for name, value in self.result.items() if name != "case"}
        mask = hashlib.sha256(np.ascontiguousarray(self.mask).tobytes()).hexdigest()
        return content_hash([__version__, self.model.checksum, mask, result, images])

    def uid(self, what: str) -> str:
        """A UID that is the same for the same images, model and result (``2.25.``, PS3.5 B.2)."""
        return stable_uid(self._fingerprint, what)

    def identity(self, kind: str, variant: str = "") -> dict[str, Any]:
        """Arguments that every object of highdicom takes: UIDs, and the equipment."""
        return {
            "series_instance_uid": self.uid(f"series {kind}{variant}"),
            "series_number": _SERIES_NUMBERS[kind] + int(self.first_instance.get("SeriesNumber") or 0) % 1000,
            "sop_instance_uid": self.uid(f"object {kind}{variant}"),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.model.name[:_LONGEST_TEXT],
            "software_versions": [__version__, self.model.version[:_LONGEST_TEXT]],
            "device_serial_number": self.model.checksum[:_LONGEST_TEXT],
            "series_description": f"braintum {_TITLES[kind]}: {DISCLAIMER}",
        }

    @property
    def algorithm(self) -> AlgorithmIdentificationSequence:
        """Of segments."""
        return AlgorithmIdentificationSequence(
            name=self.model.name[:_LONGEST_TEXT],
            version=self.model.version[:_LONGEST_TEXT],
            family=codes.DCM.ArtificialIntelligence,
            source=MANUFACTURER,
            parameters={"SHA-256 of the weights": self.model.checksum},
        )

    @property
    def report_algorithm(self) -> AlgorithmIdentification:
        """Of measurements."""
        return AlgorithmIdentification(
            name=self.model.name,
            version=self.model.version,
            parameters=[f"SHA-256 of the weights: {self.model.checksum}", DISCLAIMER],
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        )


_TITLES = {"SEG": "segmentation", "SR": "report", "SC": "picture", "RTSTRUCT": "contours"}
_SERIES_NUMBERS = {kind: 71000 + 1000 * number for number, kind in enumerate(_TITLES)}


def stable_uid(*texts: str) -> str:
    """A UID out of texts."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(texts)).int}"
