"""Ways to damage one file: of bytes, names, tables, and of each format's header.

A damage changes a file in place and returns the path that a message about it should name. What is random comes from
the generator that it is given, so that a seed gives the same damage again.
"""

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damaged_formats as formats
import numpy as np
from PIL import Image

Apply = Callable[[Path, np.random.Generator], Path | None]
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAGIC = {
    "PNG": formats.PNG_MAGIC,
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "zip": b"PK\x03\x04",
    "DICOM": bytes(128) + b"DICM",
    "NRRD": b"NRRD0005\n",
}


@dataclass(frozen=True)
class Damage:
    """One way to damage a file.

    Attributes:
        name: in tables.
        endings: of the files that it suits; empty: any.
        apply: damages a file, and returns the path that a message should name if that is another one.
        weight: how often it is drawn, relative to the others.
    """

    name: str
    endings: tuple[str, ...]
    apply: Apply
    weight: int = 1

    def suits(self, path: Path) -> bool:
        """Whether a file is of a kind that this can damage."""
        return not self.endings or path.name.lower().endswith(self.endings)


# any file


def truncate(path: Path, rng: np.random.Generator) -> None:
    """Keeps the first bytes: at offsets that matter in headers, or anywhere."""
    content = path.read_bytes()
    usual = [n for n in (0, 1, 4, 8, 16, 100, 128, 347, 348, 351, 352, 512, len(content) - 1) if 0 <= n < len(content)]
    length = int(rng.choice(usual)) if rng.random() < 0.4 else int(rng.integers(0, max(1, len(content))))
    path.write_bytes(content[:length])


def flip(path: Path, rng: np.random.Generator) -> None:
    """Changes 1 to 16 bytes, half of the time in the first 400."""
    content = bytearray(path.read_bytes())
    end = min(len(content), 400) if rng.random() < 0.5 else len(content)
    for _ in range(int(rng.choice((1, 4, 16)))):
        content[int(rng.integers(0, end))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def zero_block(path: Path, rng: np.random.Generator) -> None:
    """A block of zeros, as after a crash of the file system."""
    content = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(content)))
    length = min(int(rng.integers(1, 4096)), len(content) - start)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def other_magic(path: Path, rng: np.random.Generator) -> None:
    """The first bytes of another format."""
    magic = MAGIC[str(rng.choice(sorted(MAGIC)))]
    content = path.read_bytes()
    path.write_bytes(magic + content[len(magic) :] if rng.random() < 0.5 else magic)


def other_content(path: Path, rng: np.random.Generator) -> None:
    """Text, a web page or noise under the name of the file."""
    contents = (
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n",
        rng.bytes(2000),
        b"\xff\xfe" + "größe".encode("utf-16-le"),
    )
    path.write_bytes(contents[int(rng.integers(0, len(contents)))])


def folder_instead(path: Path, rng: np.random.Generator) -> None:
    """A folder where a file should be."""
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path, rng: np.random.Generator) -> None:
    """A symbolic link to itself."""
    path.unlink()
    path.symlink_to(path.name)


def link_to_nothing(path: Path, rng: np.random.Generator) -> None:
    """A symbolic link to a file that is not there."""
    path.unlink()
    path.symlink_to("/nonexistent/" + path.name)


def loop_beside(path: Path, rng: np.random.Generator) -> None:
    """A link beside the file that leads back to the folder it is in: harmless, if nobody follows it for ever."""
    (path.parent / "loop").symlink_to(path.parent, target_is_directory=True)


def odd_name(path: Path, rng: np.random.Generator) -> Path:
    """Spaces, accents, line breaks and quotes in a file name; the ending and the channel stay."""
    odd = ("ä ö", "名前", "a b", "it's", "new\nline", "-rf", "%s{}", "\u202ereversed", "e\u0301", "\udce4")
    chosen = odd[int(rng.integers(0, len(odd)))]
    name = chosen + path.name if chosen == "-rf" else chosen.join((path.name[:1], path.name[1:]))
    return path.rename(path.with_name(name))


# JSON


def _values(content: Any, place: tuple = ()) -> list[tuple]:
    """Places of all values within JSON content."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    return [place, *(found for key, value in items for found in _values(value, (*place, key)))]


def json_value(path: Path, rng: np.random.Generator) -> None:
    """Another value somewhere: of another type, absurd, or none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    places = _values(content)
    place = places[int(rng.integers(0, len(places)))]
    others = (None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "../../x", "x" * 100_000, [], {}, [[1]])
    other = others[int(rng.integers(0, len(others)))]
    if not place:
        content = other
    else:
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if rng.random() < 0.25:
            del parent[place[-1]]
        else:
            parent[place[-1]] = other
    path.write_text(json.dumps(content), encoding="utf-8")


def json_text(path: Path, rng: np.random.Generator) -> None:
    """JSON that is none, or that parsers stumble over."""
    text = path.read_text(encoding="utf-8")
    texts = (
        "[" * 100_000,
        '{"a":' * 100_000,
        text.replace(":", "=", 1),
        text + text,
        text.encode("utf-8").decode("latin-1") + "\0",
        '{"a": 1, "a": 2}',
        "1" * 10_000,
        "NaN",
        "",
    )
    path.write_text(texts[int(rng.integers(0, len(texts)))], encoding=str(rng.choice(("utf-8", "utf-8", "utf-16"))))


# CSV


def csv_value(path: Path, rng: np.random.Generator) -> None:
    """Another value in some cell, the header included; or one cell more or less."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    row = rows[int(rng.integers(0, len(rows)))]
    column = int(rng.integers(0, len(row)))
    others = ("", " ", "NaN", "-1", "1e999", "a,b", 'a"b', "a\nb", "ä ö 名", "x" * 200_000, "../../x", "=1+1", "\u202e")
    choice = rng.random()
    if choice < 0.15:
        del row[column]
    elif choice < 0.3:
        row.insert(column, "more")
    else:
        row[column] = others[int(rng.integers(0, len(others)))]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def csv_text(path: Path, rng: np.random.Generator) -> None:
    """A table in another encoding, with NULs, an open quotation mark, repeated or missing rows, or other separators."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    latin = content.replace(b"o", "ö".encode("latin-1"))
    texts = (
        content.decode("utf-8").encode("utf-16"),
        latin,
        content.replace(b"a", b"\0", 3),
        b'"' + content,
        lines[0],
        content + b"".join(lines[1:2]),
        b"".join(lines[1:]),
        content.replace(b",", b"\t"),
        b"".join((lines[0], lines[0], *lines[1:])),
        b"",
    )
    path.write_bytes(texts[int(rng.integers(0, len(texts)))])


NIFTI, NRRD, DICOM = (".nii.gz", ".nii"), (".nrrd",), (".dcm",)
DAMAGES = (
    Damage("truncated", (), truncate, 4),
    Damage("bytes flipped", (), flip, 4),
    Damage("block of zeros", (), zero_block, 2),
    Damage("magic of another format", (), other_magic, 2),
    Damage("other content", (), other_content),
    Damage("folder instead of file", (), folder_instead),
    Damage("link to itself", (), link_to_itself),
    Damage("link to nothing", (), link_to_nothing),
    Damage("folder loop beside it", (), loop_beside),
    Damage("odd name", (".nii.gz", ".nrrd", ".dcm", *PICTURES), odd_name),
    Damage("JSON value", (".json",), json_value, 8),
    Damage("JSON text", (".json",), json_text, 4),
    Damage("CSV cell", (".csv",), csv_value, 8),
    Damage("CSV text", (".csv",), csv_text, 4),
    Damage("NIfTI header", NIFTI, formats.nifti_header, 8),
    Damage("truncated within gzip", NIFTI, formats.nifti_truncated_inside, 2),
    Damage("gzip bomb", (".nii.gz",), formats.nifti_bomb),
    Damage("NaN or infinity", (*NIFTI, *NRRD), formats.not_finite, 2),
    Damage("other geometry", (*NIFTI, *NRRD), formats.other_geometry, 3),
    Damage("several values a voxel", (*NIFTI, *NRRD), formats.several_values_a_voxel, 2),
    Damage("one value everywhere", (*NIFTI, *NRRD), formats.no_voxel_differs),
    Damage("NRRD header", NRRD, formats.nrrd_header, 8),
    Damage("DICOM element", DICOM, formats.dicom_element, 6),
    Damage("DICOM slice missing", DICOM, formats.dicom_slice_missing, 2),
    Damage("DICOM slice twice", DICOM, formats.dicom_slice_twice, 2),
    Damage("DICOM series mixed", DICOM, formats.dicom_slices_mixed, 2),
    Damage("picture header", (".png", ".jpg", ".jpeg"), formats.png_header, 3),
    Damage("another picture", PICTURES, formats.other_picture, 5),
    Damage("MATLAB field", (".mat",), formats.mat_field, 8),
    Damage("MATLAB version 5", (".mat",), formats.mat_version_5),
    Damage("checkpoint content", (".pth",), formats.checkpoint_content, 8),
)
BY_NAME = {damage.name: damage for damage in DAMAGES}


def draw_damage(path: Path, rng: np.random.Generator) -> Damage:
    """Draws one of the damages that suit a file, by their weights."""
    suitable = [damage for damage in DAMAGES if damage.suits(path)]
    weights = np.array([damage.weight for damage in suitable], float)
    return suitable[int(rng.choice(len(suitable), p=weights / weights.sum()))]


def is_broken(path: Path) -> bool:
    """Whether a reader that checks checksums refuses a file: such damage must not go unnoticed."""
    if not path.is_file():
        return False
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                while file.read(2**20):
                    pass
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
    except Exception:
        return True
    return False
