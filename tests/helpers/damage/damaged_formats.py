"""Damages of the image formats and of checkpoints: headers that cannot be, and what lies about its content."""

import gzip
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


# NIfTI


def _nifti_bytes(path: Path) -> bytearray:
    content = path.read_bytes()
    return bytearray(gzip.decompress(content) if path.name.endswith(".gz") else content)


def _write_nifti(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(bytes(content), 6, mtime=0) if path.name.endswith(".gz") else bytes(content))


def nifti_header(path: Path, rng: np.random.Generator) -> None:
    """A field of the header that cannot be: sizes, types, spacings, offsets, scaling, geometry."""
    content = _nifti_bytes(path)
    nan, inf = float("nan"), float("inf")
    identity = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    singular, sheared = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0], [1, 0.7, 0, 0, 0, 1, 0.4, 0, 0, 0, 1, 0]
    fields: tuple[tuple[int, str, list], ...] = (
        (40, "8h", [3, 32767, 32767, 32767, 1, 1, 1, 1]),
        (40, "8h", [3, 20000, 20000, 2, 1, 1, 1, 1]),
        (42, "h", [32767]),
        (42, "h", [0]),
        (44, "h", [-5]),
        (46, "h", [0]),
        (40, "h", [0]),
        (40, "h", [7]),
        (40, "h", [12]),
        (40, "8h", [4, 12, 10, 4, 2, 1, 1, 1]),
        (70, "h", [0]),
        (70, "h", [128]),
        (70, "h", [1792]),
        (70, "h", [999]),
        (72, "h", [1]),
        (80, "f", [0.0]),
        (80, "f", [nan]),
        (84, "f", [-3.0]),
        (84, "f", [inf]),
        (84, "f", [1e30]),
        (108, "f", [nan]),
        (108, "f", [1e9]),
        (108, "f", [0.0]),
        (112, "2f", [nan, 0.0]),
        (112, "2f", [1.0, inf]),
        (112, "2f", [1e38, 0.0]),
        (252, "2h", [0, 1]),
        (252, "2h", [99, 99]),
        (256, "6f", [nan] * 6),
        (344, "4s", [b"xxxx"]),
        (0, "i", [540]),
    )
    number = int(rng.integers(0, len(fields) + 3))
    if number < len(fields):
        offset, form, values = fields[number]
        struct.pack_into("<" + form, content, offset, *values)
    else:
        struct.pack_into("<2h", content, 252, 0, 1)  # the sform alone
        matrix = (singular, sheared, [*identity[:11], nan])[number - len(fields)]
        struct.pack_into("<12f", content, 280, *matrix)
    _write_nifti(path, content)


def nifti_truncated_inside(path: Path, rng: np.random.Generator) -> None:
    """A whole gzip file whose content ends early."""
    content = _nifti_bytes(path)
    _write_nifti(path, content[: int(rng.integers(0, len(content)))])


def nifti_bomb(path: Path, rng: np.random.Generator) -> None:
    """A small file that unpacks to 6 GiB of zeros, as its header says."""
    header = _nifti_bytes(path)[:352]
    struct.pack_into("<8h", header, 40, 3, 1500, 1500, 1500, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block, parts = bytes(2**22), [packer.compress(bytes(header))]
    parts += [packer.compress(block) for _ in range(32)]  # what a reader can be brought to unpack before it gives up
    path.write_bytes(b"".join(parts) + packer.flush())


def _rewrite(path: Path, change: Callable[[sitk.Image], sitk.Image]) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def not_finite(path: Path, rng: np.random.Generator) -> None:
    """NaN or infinite values."""
    value = float(rng.choice((np.nan, np.inf, -np.inf)))
    everywhere = rng.random() < 0.3

    def change(image: sitk.Image) -> sitk.Image:
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        array.flat[slice(None) if everywhere else int(rng.integers(0, array.size))] = value
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        return changed

    _rewrite(path, change)


def other_geometry(path: Path, rng: np.random.Generator) -> None:
    """A size, spacing, origin or direction other than that of the files it belongs to."""
    what = int(rng.integers(0, 4))

    def change(image: sitk.Image) -> sitk.Image:
        if what == 0:
            return image[1:]
        if what == 1:
            image.SetSpacing([2 * value for value in image.GetSpacing()])
        elif what == 2:
            image.SetOrigin([value + 30 for value in image.GetOrigin()])
        else:
            direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
            image.SetDirection((direction @ np.diag([-1.0, -1.0, 1.0][: len(direction)])).ravel().tolist())
        return image

    _rewrite(path, change)


def several_values_a_voxel(path: Path, rng: np.random.Generator) -> None:
    """Colours, or another number of dimensions."""
    components = int(rng.choice((2, 3)))
    _rewrite(path, lambda image: sitk.Compose([sitk.Cast(image, sitk.sitkUInt8)] * components))


def no_voxel_differs(path: Path, rng: np.random.Generator) -> None:
    """One value everywhere."""
    _rewrite(path, lambda image: image * 0)


# NRRD and DICOM


def nrrd_header(path: Path, rng: np.random.Generator) -> None:
    """A field of the text header that cannot be, or that points to another file."""
    head, _, data = path.read_bytes().partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    changes = (
        ("sizes", "100000 100000 100000"),
        ("sizes", "0 10 8"),
        ("sizes", "-3 10 8"),
        ("sizes", "12 10"),
        ("type", "unsigned banana"),
        ("type", "block"),
        ("dimension", "17"),
        ("encoding", "gzip9"),
        ("space directions", "(1,0,0) (1,0,0) (0,0,1)"),
        ("space directions", "(1,0,0) (0.7,1,0) (0,0.4,1)"),
        ("space directions", "(nan,0,0) (0,1,0) (0,0,1)"),
        ("space directions", "(0,0,0) (0,0,0) (0,0,0)"),
        ("space origin", "(inf,0,0)"),
        ("data file", "/etc/hostname"),
        ("data file", "../../../etc/hostname"),
    )
    key, value = changes[int(rng.integers(0, len(changes)))]
    lines = [line for line in lines if not line.startswith(f"{key}:")] + [f"{key}: {value}"]
    path.write_bytes("\n".join(lines).encode("latin-1") + b"\n\n" + data)


def dicom_element(path: Path, rng: np.random.Generator) -> None:
    """Rows, columns, bits or position of one slice are not what they were."""
    content = bytearray(path.read_bytes())
    changes = (
        (b"\x28\x00\x10\x00US\x02\x00", struct.pack("<H", 65535)),
        (b"\x28\x00\x11\x00US\x02\x00", struct.pack("<H", 0)),
        (b"\x28\x00\x10\x00US\x02\x00", struct.pack("<H", 5)),
        (b"\x28\x00\x00\x01US\x02\x00", struct.pack("<H", 12)),
        (b"\x28\x00\x02\x00US\x02\x00", struct.pack("<H", 3)),
        (b"\x20\x00\x32\x00DS", b"\xff\xff"),
        (b"\x20\x00\x37\x00DS", b"\xff\x7f"),
        (b"\x28\x00\x30\x00DS", b"\x00\x00"),
    )
    tag, value = changes[int(rng.integers(0, len(changes)))]
    start = content.find(tag)
    if start >= 0:
        content[start + len(tag) : start + len(tag) + len(value)] = value
    path.write_bytes(content)


def dicom_slice_missing(path: Path, rng: np.random.Generator) -> Path:
    """A slice of the series is not there."""
    inner = sorted(path.parent.glob("*.dcm"), key=lambda file: int(file.stem.rpartition("_")[2]))[1:-1]
    inner[int(rng.integers(0, len(inner)))].unlink()
    return path.parent


def dicom_slice_twice(path: Path, rng: np.random.Generator) -> Path:
    """A slice of the series is there twice, under another name."""
    shutil.copyfile(path, path.with_name("copy_" + path.name))
    return path.parent


def dicom_slices_mixed(path: Path, rng: np.random.Generator) -> Path:
    """A slice of another series lies in the folder."""
    others = [file for file in path.parent.parent.parent.rglob("*.dcm") if file.parent != path.parent]
    other = others[int(rng.integers(0, len(others)))]
    if rng.random() < 0.5:
        shutil.copyfile(other, path)
    else:
        shutil.copyfile(other, path.with_name("mixed_" + other.name))
    return path.parent


# pictures


def png_header(path: Path, rng: np.random.Generator) -> None:
    """Sizes, depth or colours that cannot be, with a valid checksum; or none of it."""
    content = bytearray(path.read_bytes())
    if not content.startswith(PNG_MAGIC):  # a JPEG: the size of its first frame
        start = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[start + 5 : start + 9] = struct.pack(">2H", *((65500, 65500), (0, 0), (1, 1))[int(rng.integers(0, 3))])
        path.write_bytes(content)
        return
    headers = (
        (100_000, 100_000, 8, 0),
        (13_000, 13_000, 16, 2),
        (0, 72, 8, 0),
        (72, 0, 8, 0),
        (2**31 - 1, 1, 8, 0),
        (72, 72, 3, 0),
        (72, 72, 8, 9),
        (72, 72, 1, 3),
    )
    content[16:26] = struct.pack(">2I2B", *headers[int(rng.integers(0, len(headers)))])
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def other_picture(path: Path, rng: np.random.Generator) -> None:
    """Another size, mode, depth, or orientation; two frames; everything of one value."""
    with Image.open(path) as opened:
        form, picture = opened.format, opened.convert("RGB")
    buffer, options = io.BytesIO(), {}
    what = int(rng.integers(0, 8))
    if what == 0:
        picture = picture.resize((picture.width + 3, picture.height))
    elif what == 1:
        picture = picture.convert("CMYK" if form != "PNG" else "RGBA")
    elif what == 2:
        form, picture = "PNG", Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)
    elif what == 3:
        form, picture = "TIFF", Image.fromarray(np.full(picture.size[::-1], np.nan, np.float32))
    elif what == 4:
        form, options = "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}
    elif what == 5:
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice((3, 8, 77)))
        options = {"exif": exif}
    elif what == 6:
        picture = picture.point(lambda value: 0)
    else:
        picture = picture.resize((1, 1))
    picture.save(buffer, form, **options)
    path.write_bytes(buffer.getvalue())


# MATLAB v7.3


def mat_field(path: Path, rng: np.random.Generator) -> None:
    """A field of `cjdata` that cannot be: missing, huge, of another type, a link in a circle."""
    name = str(rng.choice(("PID", "image", "label", "tumorMask")))
    what = int(rng.integers(0, 9))
    with h5py.File(path, "r+") as file:
        group = file["cjdata"]
        old = group[name][()]
        del group[name]
        if what == 0:
            group.create_dataset(name, shape=(200_000, 200_000), dtype="f8", chunks=(1000, 1000))
        elif what == 1:
            group.create_dataset(name, data=np.zeros((0, 5)))
        elif what == 2:
            group[name] = "text"
        elif what == 3:
            group.create_group(name)
        elif what == 4:
            group[name] = h5py.SoftLink(f"/cjdata/{name}")
        elif what == 5:
            group[name] = h5py.ExternalLink("../../../etc/hostname", "/x")
        elif what == 6:
            group[name] = np.full(old.shape, [np.nan, np.inf][int(rng.integers(0, 2))])
        elif what == 7:
            group[name] = np.zeros((2, 2), dtype=[("a", "f4"), ("b", "i4")])
        elif name in ("PID", "label"):
            group[name] = np.full((3, 3), 65535, np.uint16)
        else:
            group[name] = np.asarray(old)[:, :-1]


def mat_version_5(path: Path, rng: np.random.Generator) -> None:
    """The same as MATLAB 5, which is another format."""
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"cjdata": {"image": np.ones((8, 8)), "label": 1.0, "PID": "1"}})
    path.write_bytes(buffer.getvalue())


# checkpoints


class _Code:
    """Unpickling this calls a function."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("/tmp/unpickled_code_ran",)


def checkpoint_content(path: Path, rng: np.random.Generator) -> None:
    """A checkpoint with other keys, types, shapes, values, or with code in it."""
    import torch

    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    name = sorted(weights)[int(rng.integers(0, len(weights)))]
    what = int(rng.integers(0, 11))
    if what == 0:
        content = [1, 2]
    elif what == 1:
        del content[str(rng.choice(("network_weights", "trainer_name", "init_args")))]
    elif what == 2:
        content["network_weights"] = None
    elif what == 3:
        del weights[name]
    elif what == 4:
        weights[name] = torch.zeros(3, 3, 3)
    elif what == 5:
        weights[name] = torch.full_like(weights[name], float("nan"))
    elif what == 6:
        weights["another"] = torch.ones(1)
    elif what == 7:
        content["trainer_name"] = "os.system"
    elif what == 8:
        content["init_args"] = {"configuration": "../../x"}
    elif what == 9:
        content["inference_allowed_mirroring_axes"] = (0, 9)
    else:
        content["code"] = _Code()
    torch.save(content, path)
