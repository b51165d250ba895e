"""Folders are searched by one rule: links are followed, each real folder once; what nobody took is named."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from braintum.conversion.building.inspection import nothing_found
from braintum.conversion.files.folders import image_kind, subfolders, unused_images, unused_note, walk

NIFTI = struct.pack("<i", 348) + bytes(36) + struct.pack("<8h", 3, 2, 2, 2, 1, 1, 1, 1) + bytes(292)
DICOM = bytes(128) + b"DICM"


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_links_are_followed_and_real_folders_counted_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root / "P2" / "a.nii.gz")
    touch(tmp_path / "cache" / "P1" / "sub" / "b.nii.gz")
    (root / "A0").symlink_to(root / "P2")  # the real folder stands for both
    (root / "P1").symlink_to(tmp_path / "cache" / "P1")
    (root / "A1").symlink_to(tmp_path / "cache" / "P1" / "sub")  # the folder around it is whole
    (root / "P3").symlink_to(tmp_path / "gone")
    assert names(root, walk(root)) == ["P1", "P1/sub", "P1/sub/b.nii.gz", "P2", "P2/a.nii.gz", "P3"]
    assert names(root, subfolders(root)) == ["P1", "P2"]
    assert subfolders(tmp_path / "nowhere") == []


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_in_a_circle_end(tmp_path: Path, target: str) -> None:
    file = touch(tmp_path / "root" / "P1" / "a.nii.gz")
    (file.parent / "again").symlink_to(target)
    assert [path for path in walk(tmp_path / "root") if path.name == "a.nii.gz"] == [file]


def test_link_to_itself_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert walk(tmp_path) == [tmp_path / "loop"]
    assert unused_images(tmp_path, []) == [
        f"{tmp_path / 'loop'}: a broken link that was not used; rename or move it, or name it with --not-needed"
    ]


def test_hidden_files_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    touch(tmp_path / ".git" / "a.png")
    touch(tmp_path / "._a.png")
    assert walk(tmp_path) == []
    assert len(walk(tmp_path, hidden=True)) == 3


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "P1" / "a.nii.gz")
    scan = os.scandir

    def scandir(path):
        if Path(path).name in ("P1", closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    closed = "P1"
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "P1")
    assert walk(tmp_path) == [tmp_path / "P1"]
    assert unused_images(tmp_path, []) == [f"{tmp_path / 'P1'}: a folder that cannot be listed; make it readable"]
    closed = tmp_path.name
    with pytest.raises(PermissionError):
        walk(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("T1", NIFTI, "an image"),
        ("T1.GZ", gzip.compress(NIFTI, mtime=0), "an image"),
        ("scan.hdr", NIFTI, "an image"),
        ("scan2", struct.pack(">i", 540) + b"n+2\0" + bytes(532), "an image"),
        ("head.seg", b"NRRD0004\n" + bytes(80), "an image"),
        ("head", b"ObjectType = Image\nNDims = 3\n" + bytes(80), "an image"),
        ("orig.MGZ", gzip.compress(struct.pack(">7i", 1, 256, 256, 256, 1, 0, 0) + bytes(256), mtime=0), "an image"),
        ("slice_1.MAT", b"MATLAB 7.3 MAT-file, Platform" + bytes(80), "an image"),
        ("IM0001", DICOM, "DICOM"),
        ("IM0002", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", "DICOM"),
        ("report", DICOM + b"\x02\x00\x02\x00UI\x1e\x001.2.840.10008.5.1.4.1.1.88.11\0", ""),
        ("DICOMDIR", DICOM + b"\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10", ""),
        ("mask", DICOM + b"\x02\x00\x02\x00UI\x1c\x001.2.840.10008.5.1.4.1.1.66.4", "DICOM"),
        ("empty.NII.GZ", b"", "an image"),
        ("._t1.nii.gz", b"\x00\x05\x16\x07" + bytes(600), ""),
        (".hidden", NIFTI, "an image"),
        ("cases.csv", b"patient,class\n" * 50, ""),
        ("archive.gz", gzip.compress(b"text" * 200, mtime=0), ""),
        ("broken.gz", b"\x1f\x8b" + b"x" * 99, ""),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(600), ""),
        ("notes", b"", ""),
    ],
)
def test_images_are_told_by_their_content(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    assert image_kind(touch(tmp_path / name, content)) == kind


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_pictures_are_told_by_their_content(tmp_path: Path, format_name: str) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "picture", format=format_name)
    assert image_kind(tmp_path / "picture") == "an image"


def test_unused_images_are_named_once(tmp_path: Path) -> None:
    used = touch(tmp_path / "P1" / "t1.nii.gz")
    (tmp_path / "P1" / "same").symlink_to(used)
    touch(tmp_path / "P1" / "T2.NII.GZ")
    touch(tmp_path / "P2" / "t1.nii.gz")
    touch(tmp_path / "P3" / "screen.png")
    for number in range(3):
        touch(tmp_path / "P4" / "7" / f"IM{number}", DICOM)
    found = unused_images(tmp_path, [used], [f"{tmp_path / 'P2'}: has no mask; add it"], ["*SCREEN*"])
    assert found == [
        f"{tmp_path / 'P1' / 'T2.NII.GZ'}: an image that was not used; rename or move it, or name it with --not-needed",
        f"{tmp_path / 'P4' / '7'}: 3 DICOM file(s) that were not used; rename or move them, or name them with "
        "--not-needed",
    ]
    (note,) = unused_note(found)
    assert note.startswith(f"Not used, although images: 2: {tmp_path / 'P1' / 'T2.NII.GZ'}, ")
    assert unused_note([]) == []
    assert unused_images(tmp_path, [used], [f"{tmp_path}: a problem of the whole"], ["p4/*", "*screen*", "P2/*"]) == [
        found[0]
    ]


@pytest.mark.parametrize("name", ["a.ZIP", "a.tar.gz", "a.7z"])
def test_archives_are_named_where_nothing_is_found(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "data" / name)
    assert f"unpack {name}" in str(nothing_found(tmp_path, "images"))
