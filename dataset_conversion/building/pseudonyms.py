"""Pseudonyms of cases and patients: hashes with a secret salt, `--pseudonymise`.

A pseudonym is an HMAC-SHA256 of the identifier, cut to 64 bits. The same salt gives the same pseudonyms, so that data
sets made with it can be combined and repeated; without the salt nobody can find out whether a name is among them by
hashing it. So the salt is kept where the data do not go, and beside it the key list: who each pseudonym is.
"""

import hashlib
import hmac
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from braintum.conversion.building.key_list import key_file, write_keys
from braintum.conversion.format.cases import Case
from braintum.conversion.format.dates import days_since_first
from braintum.conversion.format.splits import Splits

_SALT_BYTES = 32
_DIGITS = 16


@dataclass(frozen=True)
class Pseudonyms:
    """Replaces identifiers.

    Attributes:
        salt: secret, at least 16 bytes.
        key_file: the key list; None: none is kept.
    """

    salt: bytes
    key_file: Path | None = None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], create: bool = True) -> "Pseudonyms":
        """Reads the salt; makes a file with a random one, for its owner only, where there is none.

        Args:
            path: of the file.
            create: False for a dry run: a salt that is not there yet is not kept.

        Raises:
            ValueError: the file holds less than 16 bytes.
            OSError: it cannot be read or written.
        """
        path = Path(path)
        if not path.exists() and not create:
            return cls(secrets.token_bytes(_SALT_BYTES))
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_SALT_BYTES) + "\n")
        salt = path.read_bytes().strip()
        if len(salt) < 16:
            raise ValueError(f"{path}: holds {len(salt)} bytes, a salt has 16 at least; remove it to get a random one")
        return cls(salt, key_file(path))

    def check_place(self, raw_folder: Path) -> None:
        """Refuses a salt and a key list among the data.

        Raises:
            ValueError: they lie in `nnUNet_raw`.
        """
        if self.key_file is not None and raw_folder.resolve() in self.key_file.resolve().parents:
            raise ValueError(
                f"{self.key_file.parent}: lies in nnUNet_raw; keep the salt and the list of keys apart from the data: "
                "give another file to --pseudonymise"
            )

    def write_keys(self, dataset: str, cases: Iterable[Case]) -> None:
        """Notes in the key list which case, patient and slice each pseudonym of a data set stands for."""
        if self.key_file is None:
            return
        rows = [
            {
                **vars(case),
                "case_pseudonym": self.name(case.case),
                "patient_pseudonym": self.of("patient", case.patient),
            }
            for case in cases
        ]
        write_keys(self.key_file, dataset, rows)

    def of(self, kind: str, identifier: str) -> str:
        """The pseudonym of an identifier; empty stays empty. Each kind (case, patient, …) has its own."""
        if not identifier:
            return ""
        return hmac.new(self.salt, f"{kind}\0{identifier}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]

    def name(self, case: str) -> str:
        """The name of a case."""
        return f"case_{self.of('case', case)}"

    def case(self, case: Case) -> Case:
        """A row of `cases.csv` that names nobody: no source file, hashes for case, patient and group."""
        return replace(
            case,
            case=self.name(case.case),
            patient=self.of("patient", case.patient),
            group=self.of("group", case.group),
            source="",
            date="",
        )

    def cases(self, cases: Iterable[Case]) -> list[Case]:
        """Rows by pseudonym, so that their order says nothing either; dates become days since a patient's first."""
        cases = list(cases)
        dates: dict[str, set[str]] = defaultdict(set)
        for case in cases:
            dates[case.patient or case.case].add(case.date)
        days = {patient: days_since_first(texts) for patient, texts in dates.items()}
        named = [replace(self.case(case), date=days[case.patient or case.case].get(case.date, "")) for case in cases]
        return sorted(named, key=lambda case: case.case)

    def splits(self, splits: Splits) -> Splits:
        """Splits of the pseudonyms."""
        return [{part: sorted(map(self.name, names)) for part, names in split.items()} for split in splits]

    def dataset_json(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """`dataset.json` with counts of cases in place of the cases that its remarks name."""
        content = dict(content)
        if "remarks" in content:
            content["remarks"] = {remark: len(cases) for remark, cases in content["remarks"].items()}
        return content

    @property
    def fingerprint(self) -> str:
        """Tells whether two conversions use the same salt."""
        return self.of("salt", "fingerprint")
