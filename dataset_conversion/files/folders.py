"""What lies in a folder: the one rule by which sources and the audit search, and what they did not take.

Symbolic links are followed: a subset made of links is as good as a copy. Each real folder counts once, under its own
path where that is in the tree, else under a link to it, so that links in a circle end. A broken link is a file, for
reading it to fail and to say so; a folder that cannot be listed has nothing in it, and `unused_images` names it.
"""

import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from PIL import Image, UnidentifiedImageError

DICOM_ENDINGS = (".dcm", ".ima")
IMAGE_ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", *DICOM_ENDINGS),
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
)
_PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
_START = 600
"""Bytes of a file that tell what it is."""
_METAIMAGE = re.compile(rb"(ObjectType|NDims)\s*=")
_BARE_DICOM = re.compile(rb"\x08\x00[\x00\x01\x05\x08\x12-\x18]\x00(UL|UI|CS|DA|TM|[\x02-\x40]\x00\x00\x00)")
_DICOM_WITHOUT_IMAGE = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|66(?!\.4)|88|104|481\.[3-9])\b)")
"""Of directories, presentation states, registrations, reports, documents, and plans: SOP classes."""
MAX_NAMES = 8
"""Of more images than this the summary names only the first."""


def walk(folder: Path, hidden: bool = False) -> list[Path]:
    """Returns all files and folders below a folder, sorted; see the module's docstring.

    Args:
        folder: where to search.
        hidden: also what is hidden, or lies in a hidden folder.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def note_unlistable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        found.append(Path(error.filename))

    starts = [folder]
    while starts:
        links: list[Path] = []
        for start in starts:
            for current, folders, files in os.walk(start, onerror=note_unlistable):
                here = Path(current)
                status = here.stat()
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                if not hidden:
                    folders[:] = [name for name in folders if not name.startswith(".")]
                found += [here] if here != folder else []
                found += [here / name for name in files if hidden or not name.startswith(".")]
                links += [here / name for name in folders if (here / name).is_symlink()]
        # a link to a folder comes before one to what lies in it, so that the folder is whole
        starts = sorted(links, key=lambda link: (len(_real(link).parts), link))
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders directly in a folder that are not hidden; none where there is no such folder."""
    return [path for path in walk(folder) if path.parent == folder and path.is_dir()] if folder.is_dir() else []


def unused_images(
    folder: Path, used: Iterable[Path], problems: Sequence[str] = (), not_needed: Sequence[str] = ()
) -> list[str]:
    """Finds the images below a folder that nobody took, by their endings and by their content.

    Args:
        folder: where to search.
        used: files that were taken, and files or folders that are known not to be needed.
        problems: sentences that begin with a path and a colon; what lies there has been told of.
        not_needed: patterns of names, or of paths within the folder, that are not needed either; case is ignored.

    Returns:
        A sentence each, or each folder of DICOM files: path, fault and remedy.
    """
    return [f"{path}: {fault}" for path, fault in unused_paths(folder, used, problems, not_needed).items()]


def unused_paths(
    folder: Path, used: Iterable[Path], problems: Sequence[str] = (), not_needed: Sequence[str] = ()
) -> dict[Path, str]:
    """As :func:`unused_images`; returns path -> fault and remedy, sorted by path."""
    patterns = [pattern.lower() for pattern in not_needed]
    known = {_real(path) for path in used}
    known |= {_real(problem.partition(": ")[0]) for problem in problems} - {_real(folder)}
    dicom: Counter[Path] = Counter()
    faults: dict[Path, str] = {}
    for path in walk(folder, hidden=True):
        real, name = _real(path), path.relative_to(folder).as_posix().lower()
        if not known.isdisjoint((real, *real.parents)):
            continue
        if any(fnmatchcase(text, pattern) for text in (name, path.name.lower()) for pattern in patterns):
            continue
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                faults[path] = "a folder that cannot be listed; make it readable"
            continue
        kind = image_kind(path)
        if kind == "DICOM":
            dicom[path.parent] += 1
        elif kind:
            faults[path] = f"{kind} that was not used; rename or move it, or name it with --not-needed"
    for parent, number in dicom.items():
        faults[parent] = (
            f"{number} DICOM file(s) that were not used; rename or move them, or name them with --not-needed"
        )
    return dict(sorted(faults.items()))


def unused_note(unused: Sequence[str], where: str = "left_out.json") -> list[str]:
    """Returns a line for a summary: how many images were not used, and the first of them; no line where all were."""
    if not unused:
        return []
    names = [sentence.partition(": ")[0] for sentence in unused]
    more = f" and {len(names) - MAX_NAMES} more, see {where}" if len(names) > MAX_NAMES else ""
    return [f"Not used, although images: {len(names)}: {', '.join(names[:MAX_NAMES])}{more}"]


def image_kind(path: Path) -> str:
    """Tells what image a file is, by its content and, unless it is hidden, by its ending; empty if it is none.

    A broken link, and a file that cannot be opened, may be an image.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_START)
    except OSError as error:
        return "a broken link" if path.is_symlink() else f"a file ({error.strerror})"
    if start.startswith(b"\x1f\x8b"):
        try:
            start = zlib.decompressobj(31).decompress(start, _START)
        except zlib.error:
            start = b""
    if is_dicom_start(start):
        return "" if _DICOM_WITHOUT_IMAGE.search(start) else "DICOM"
    named = path.name.lower().endswith(IMAGE_ENDINGS) and not path.name.startswith(".")
    return "an image" if named or _is_volume(start) or _is_picture(path) else ""


def is_dicom_start(start: bytes) -> bool:
    """Whether a file begins as DICOM does: with its mark after 128 bytes, or without it with the first elements."""
    return start[128:132] == b"DICM" or bool(_BARE_DICOM.match(start))


def has_dicom_beginning(file: Path) -> bool:
    """Whether a file begins as DICOM does; a file that cannot be opened does not."""
    try:
        with open(file, "rb") as stream:
            return is_dicom_start(stream.read(_START))
    except OSError:
        return False


def holds_studies(source: Path) -> bool:
    """Whether a source is a ZIP archive, or a folder with DICOM files in any nesting and no others directly in it."""
    if not source.is_dir():
        return source.is_file() and zipfile.is_zipfile(source)
    others = tuple(ending for ending in IMAGE_ENDINGS if ending not in DICOM_ENDINGS)
    files = [path for path in walk(source) if path.is_file()]
    if any(path.parent == source and path.name.lower().endswith(others) for path in files):
        return False
    return any(path.name.lower().endswith(DICOM_ENDINGS) or has_dicom_beginning(path) for path in files)


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve refuses links in a circle


def _is_volume(start: bytes) -> bool:
    """Whether a file begins as NIfTI, Analyze, NRRD, MetaImage, MGH or MATLAB do."""
    if len(start) < 64:
        return False
    for order in "<>":
        size, dimensions = struct.unpack_from(f"{order}i", start)[0], struct.unpack_from(f"{order}h", start, 40)[0]
        if (size == 348 and 1 <= dimensions <= 7) or (size == 540 and start[4:6] in (b"n+", b"ni")):
            return True
    version, *sizes, kind = struct.unpack_from(">6i", start)
    is_mgh = version == 1 and all(0 < size < 2**15 for size in sizes) and kind in (0, 1, 3, 4)
    return is_mgh or start.startswith((b"NRRD000", b"MATLAB ")) or bool(_METAIMAGE.match(start))


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=_PICTURE_FORMATS):
            return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
