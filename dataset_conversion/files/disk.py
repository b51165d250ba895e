"""Full disks and read-only folders."""

import contextlib
import errno
import os
import uuid
from pathlib import Path

from braintum.commands.errors import FileError
from braintum.conversion.files.atomic import PARTIAL_PREFIX

_PROBE_BYTES = 2**20
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
}


class UnwritableFolderError(FileError):
    """A folder takes no more files, whatever they are; going on with the next one makes no sense."""


def explain_unwritable(folder: str | os.PathLike[str], kept: str, num_bytes: int = _PROBE_BYTES) -> None:
    """Tells after a failed write whether the folder is the reason; returns if it is not.

    Image libraries and torch say only that they could not write. So a file of the same size is tried.

    Args:
        folder: that was written to.
        kept: what of the work done so far is kept, and how to go on; ends the message.
        num_bytes: size of what could not be written; a mebibyte at least is tried.

    Raises:
        UnwritableFolderError: the disk is full, the folder read-only, a quota or limit reached.
    """
    probe = Path(folder) / f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:12]}-probe"
    try:
        with open(probe, "wb") as stream:
            for _ in range(-(-max(num_bytes, _PROBE_BYTES) // _PROBE_BYTES)):
                stream.write(os.urandom(_PROBE_BYTES))  # a file system may compress
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "see to that")
        raise UnwritableFolderError(f"{folder}: {error.strerror or error}; {remedy}. {kept}") from error
    finally:
        with contextlib.suppress(OSError):  # read-only: there is no probe
            probe.unlink(missing_ok=True)
