"""The sending side of a node."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pynetdicom import AE
from pynetdicom.status import code_to_category


@dataclass(frozen=True)
class Destination:
    """A node that takes results.

    Attributes:
        host: name or address.
        port: of the host.
        aet: its AE title.
    """

    host: str
    port: int
    aet: str

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """``HOST:PORT:AET`` of a command line.

        Raises:
            ValueError: it is something else.
        """
        host, port, aet = (text.rsplit(":", 2) + ["", ""])[:3]
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or not 0 < len(aet) <= 16:
            raise ValueError(f"{text!r} is no HOST:PORT:AET, such as 10.0.0.5:104:ARCHIVE")
        return cls(host, int(port), aet)


class RefusedError(ValueError):
    """The other side does not want this object; sending it again would change nothing."""


def send(files: Sequence[Path], destination: Destination, aet: str) -> None:
    """Send objects by C-STORE, all over one association.

    Args:
        files: DICOM files.
        destination: that gets them.
        aet: the own AE title.

    Raises:
        OSError: it cannot be reached, or wants them later.
        RefusedError: it does not want one of them; the others were sent.
    """
    entity = AE(aet)
    datasets = [pydicom.dcmread(file) for file in files]
    for kind in {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in datasets}:
        entity.add_requested_context(*kind)
    association = entity.associate(destination.host, destination.port, ae_title=destination.aet)
    if not association.is_established:
        raise OSError("the destination cannot be reached, or refuses the association")
    refused = []
    try:
        for file, dataset in zip(files, datasets, strict=True):
            if not any(context.abstract_syntax == dataset.SOPClassUID for context in association.accepted_contexts):
                refused.append(f"{file.name}: {dataset.SOPClassUID.name} is not taken")
                continue
            try:
                status = association.send_c_store(dataset)
            except RuntimeError as error:  # what pynetdicom raises when the other side is gone
                raise OSError("the association was lost") from error
            if "Status" not in status or status.Status >> 8 == 0xA7:  # connection lost; out of resources
                raise OSError(f"{file.name} was not taken for now")
            if code_to_category(status.Status) not in ("Success", "Warning"):
                refused.append(f"{file.name}: status 0x{status.Status:04X}")
    finally:
        association.release()
    if refused:
        raise RefusedError("; ".join(refused))
