"""Checks of image files before a library reads them.

The libraries take what headers declare at its word: they allocate sizes that no file can hold, do not look at
checksums, and ITK turns NaN and infinity in NIfTI files into 0 without a word. Here the declared size is compared with
what the file can hold, a gzip stream is unpacked once (without being kept) for its checksum and for values that are
not finite, and the checksums of PNG files are computed.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from braintum.commands.errors import InputError

MAX_BYTES = 3 * 2**30
"""Of the voxels of one image; larger than any scan of a head."""
MAX_PIXELS = 16_384
"""Along one side of a picture."""
MAX_SPACING_MM = 1e4
_MAX_EXPANSION = 1100
"""Deflate cannot pack 1033 bytes into less than one."""
_BLOCK = 2**20
_HEADER = 348
_HEADERS = (348, 540)
"""Sizes of the headers of NIfTI-1 and NIfTI-2: the first four bytes of such a file."""
_FLOATS = {16: "f4", 64: "f8"}
_COMPLEX = (32, 1792, 2048)
"""NIfTI's codes of types that can hold NaN, and of complex numbers."""
_SITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")


class DamagedFileError(InputError):
    """A file is not what its name says, or not whole; the message names file and fault."""


def check_file(path: str | os.PathLike[str]) -> None:
    """Checks an image file, at the cost of reading it once; formats that are not known here are not looked into.

    Args:
        path: NIfTI, NRRD, MetaImage, DICOM or PNG.

    Raises:
        DamagedFileError: it is no file, is empty, declares more than it can hold, its checksum is wrong, or its values,
            spacing or position are not finite.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if path.is_dir():
            raise DamagedFileError(f"{path}: is a folder, not a file")
        if path.stat().st_size == 0:
            raise DamagedFileError(f"{path}: the file is empty")
        if name.endswith((".nii.gz", ".nii", *_SITK_ENDINGS)):
            check_name(path)
        if name.endswith((".nii.gz", ".nii")):
            _check_nifti(path)
        elif name.endswith(_SITK_ENDINGS):
            _check_declared_size(path)
        elif name.endswith(".png"):
            with Image.open(path) as image:
                if image.format == "PNG":
                    image.verify()
    except DamagedFileError:
        raise
    except OSError as error:  # a link in a circle, no permission; Pillow's errors too
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow
        raise DamagedFileError(f"{path}: not a complete image ({one_line(error)})") from error


def check_name(path: Path) -> None:
    """Refuses a path that is not valid text: ITK would end the whole process.

    Raises:
        DamagedFileError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DamagedFileError(f"{path}: the path is not valid UTF-8; rename it") from error


def _check_declared_size(path: Path) -> None:
    """Compares the size that ITK would allocate with that of the file."""
    import SimpleITK as sitk  # takes half a second, and folders of pictures do not need it

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    except RuntimeError:
        return  # reading will say what is wrong
    declared = voxel.GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
    for size in reader.GetSize():
        declared *= size
    # JPEG in DICOM packs less than deflate does; data may lie in other files than the header
    limit = MAX_BYTES if path.suffix.lower() in (".nhdr", ".mhd") else path.stat().st_size * _MAX_EXPANSION
    _refuse_size(path, declared, min(limit, MAX_BYTES))


def _refuse_size(path: Path, declared: int, limit: int) -> None:
    if declared > limit:
        raise DamagedFileError(
            f"{path}: declares an image of {declared / 2**20:.0f} MiB, more than a file of {path.stat().st_size} bytes "
            "can hold, or than a scan of a head takes"
        )


def _check_nifti(path: Path) -> None:
    with open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    if path.name.lower().endswith(".gz") and not is_packed:
        raise DamagedFileError(f"{path}: not packed with gzip, as its ending says")
    expansion = _MAX_EXPANSION if is_packed else 1
    blocks = _unpacked(path) if is_packed else _plain(path)
    start = b""
    for block in blocks:
        start += block
        if len(start) >= _HEADERS[-1]:
            break
    if len(start) < _HEADER:
        raise DamagedFileError(f"{path}: ends within the header")
    offset, declared, kind = _read_header(path, start)
    _refuse_size(path, declared, min(MAX_BYTES, path.stat().st_size * expansion))
    position, left = 0, b""
    for block in _chain(start, blocks):
        if kind is not None:
            voxels = left + block[max(0, offset - position) :][: max(0, offset + declared - max(position, offset))]
            usable = len(voxels) - len(voxels) % kind.itemsize
            if not np.isfinite(np.frombuffer(voxels[:usable], kind)).all():
                raise DamagedFileError(f"{path}: holds NaN or infinity; replace these values, for example with 0")
            left = voxels[usable:]
        position += len(block)
        if position > offset + declared + 2**24:
            raise DamagedFileError(f"{path}: holds far more than the {declared} bytes of voxels that it declares")
    if position < offset + declared:
        raise DamagedFileError(f"{path}: truncated: {position} of {offset + declared} bytes are there")


def _read_header(path: Path, start: bytes) -> tuple[int, int, np.dtype | None]:
    """Returns where voxels start, their number of bytes, and their type where it can hold NaN (otherwise None)."""
    order = next((o for o in "<>" if struct.unpack_from(o + "i", start)[0] in _HEADERS), None)
    if order is None:
        raise DamagedFileError(f"{path}: not a NIfTI file")
    if struct.unpack_from(order + "i", start)[0] == _HEADERS[0]:
        dim = struct.unpack_from(order + "8h", start, 40)
        code, bits = struct.unpack_from(order + "2h", start, 70)
        pixdim = struct.unpack_from(order + "8f", start, 76)
        offset, slope, intercept = struct.unpack_from(order + "3f", start, 108)
        forms = struct.unpack_from(order + "2h", start, 252)
        quaternion, matrix = (struct.unpack_from(f"{order}{n}f", start, at) for n, at in ((6, 256), (12, 280)))
    else:
        code, bits = struct.unpack_from(order + "2h", start, 12)
        dim = struct.unpack_from(order + "8q", start, 16)
        pixdim = struct.unpack_from(order + "8d", start, 104)
        (offset,) = struct.unpack_from(order + "q", start, 168)
        slope, intercept = struct.unpack_from(order + "2d", start, 176)
        forms = struct.unpack_from(order + "2i", start, 344)
        quaternion, matrix = (struct.unpack_from(f"{order}{n}d", start, at) for n, at in ((6, 352), (12, 400)))
    sizes = dim[1 : 1 + dim[0]] if 1 <= dim[0] <= 7 else ()
    if not sizes or min(sizes) < 1 or bits < 1:
        raise DamagedFileError(f"{path}: declares sizes {', '.join(map(str, dim))} and {bits} bits, which cannot be")
    if code in _COMPLEX:
        raise DamagedFileError(f"{path}: holds complex numbers; export their magnitude")
    for size, spacing in zip(sizes, pixdim[1:], strict=False):
        if size > 1 and not 0 < abs(spacing) < MAX_SPACING_MM:
            raise DamagedFileError(f"{path}: a spacing of {spacing:g} mm cannot be; correct the header")
    used = [value for form, values in zip(forms, (quaternion, matrix), strict=True) if form > 0 for value in values]
    if not np.isfinite([slope, intercept, offset, *used]).all() or not 0 <= offset <= MAX_BYTES:
        raise DamagedFileError(f"{path}: scaling, offset or position in the header is not finite; correct the header")
    declared = bits // 8
    for size in sizes:
        declared *= size
    kind = np.dtype(order + _FLOATS[code]) if code in _FLOATS else None
    return int(offset), declared, kind


def _chain(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _plain(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _unpacked(path: Path) -> Iterator[bytes]:
    """Unpacks a gzip file block by block; its checksums are verified where a member ends."""
    unpacker = zlib.decompressobj(31)
    try:
        for block in _plain(path):
            while block:
                if unpacker.eof:  # another member follows, or padding with zeros
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    unpacker = zlib.decompressobj(31)
                if found := unpacker.decompress(block, _BLOCK):
                    yield found
                block = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
        if found := unpacker.flush():
            yield found
        if not unpacker.eof:
            raise DamagedFileError(f"{path}: truncated: its gzip stream does not end")
    except zlib.error as error:
        raise DamagedFileError(f"{path}: its gzip stream is damaged ({error})") from error


def one_line(error: Exception) -> str:
    """The message of an error for a place within a sentence; the error's type where there is none."""
    return " ".join(str(error).split()) or type(error).__name__
