"""The receiving side of a node: C-ECHO and C-STORE of MR images."""

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

import pydicom
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from braintum.conversion.dicom.frames import readable
from braintum.dicom.node.spool import Spool, SpoolFullError

_LOG = logging.getLogger(__name__)

IMAGES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
"""What is taken: no results, so that an archive that sends these back starts nothing anew."""

_SUCCESS, _OUT_OF_RESOURCES, _DOES_NOT_MATCH, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_HEADER = ["StudyInstanceUID", "SOPInstanceUID"]


def start_receiver(
    spool: Spool, aet: str, address: tuple[str, int], allowed: Sequence[str]
) -> ThreadedAssociationServer:
    """Listen, in threads of this process.

    Args:
        spool: that gets what arrives.
        aet: the node's AE title, by which it has to be called.
        address: host name or address, and port.
        allowed: AE titles that may call; empty for all.

    Raises:
        OSError: the port is in use, or may not be used.
    """
    entity = AE(aet)
    entity.require_called_aet = True
    entity.require_calling_aet = list(allowed)
    entity.add_supported_context(Verification)
    for image in IMAGES:
        entity.add_supported_context(image, transfer_syntaxes())
    server = entity.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, _store, [spool])])
    return cast(ThreadedAssociationServer, server)  # None where it blocks


def transfer_syntaxes() -> list[UID]:
    """Those whose pixels can be decoded here."""
    return [
        syntax
        for syntax in AllTransferSyntaxes
        if syntax != ExplicitVRBigEndian and (not syntax.is_compressed or _can_decode(syntax))
    ]


def _can_decode(syntax: UID) -> bool:
    try:
        return syntax.is_deflated or get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _store(event: Event, spool: Spool) -> int:
    """Status of a C-STORE: success only when the image is on the disk."""
    content = event.encoded_dataset()
    try:
        with readable(Path("an image")):
            header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=_HEADER)
            study, instance = str(header.StudyInstanceUID), str(header.SOPInstanceUID)
        if not study:
            raise ValueError("without a StudyInstanceUID")
    except ValueError:  # its text may hold what a header holds
        _LOG.warning("refused an image that cannot be read")
        return _NOT_UNDERSTOOD
    if instance != getattr(event.request, "AffectedSOPInstanceUID", None):
        _LOG.warning("refused an image whose UID is not the one it was announced with")
        return _DOES_NOT_MATCH
    try:
        spool.store(study, instance, content)
    except SpoolFullError as error:
        _LOG.warning("refused an image for now: %s", error)
        return _OUT_OF_RESOURCES
    except ValueError as error:
        _LOG.warning("refused %s", error)
        return _NOT_UNDERSTOOD
    except OSError as error:
        _LOG.error("an image could not be written: %s", error.strerror)
        return _OUT_OF_RESOURCES
    return _SUCCESS
