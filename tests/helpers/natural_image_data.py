"""Tiny sources of JPEG and PNG images in their original layouts, with the originals' quirks."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from braintum.conversion.building.raw_dataset import ConversionRequest

EXIF_UPSIDE_DOWN = 3
EXIF_LYING = 8
"""The stored image has to be turned a quarter anticlockwise."""
JPEG_QUALITY = 90


def slice_image(seed: int, size: tuple[int, int] = (72, 72)) -> np.ndarray:
    """Returns grey values (uint8) that no other seed resembles; `size` is x, y."""
    coarse = np.random.default_rng(seed).integers(30, 226, (9, 9)).astype(np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    pixels[:4] = pixels[-4:] = 0
    pixels[:, :4] = pixels[:, -4:] = 0
    return pixels


def save(path: Path, pixels: np.ndarray, mode: str = "L", content: str = "JPEG", orientation: int = 0) -> Path:
    """Writes an image; `content` is the format inside, whatever the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels).convert(mode)
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if content == "JPEG" else {}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, format=content, **options)
    return path


def blob(size: tuple[int, int] = (72, 72)) -> np.ndarray:
    """Returns a mask (bool) of 12 × 8 pixels, right of the middle and above it."""
    mask = np.zeros(size[::-1], bool)
    mask[14:22, 44:56] = True
    return mask


def noisy_mask(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns a mask as compression leaves it: 0 to 10, and 245 to 255."""
    noise = np.random.default_rng(seed).integers(0, 11, mask.shape)
    return np.where(mask, 255 - noise, noise).astype(np.uint8)


def request(source: Path, raw: Path, dataset_id: int = 601, name: str = "Test", **options: Any) -> ConversionRequest:
    """A conversion in this process."""
    return ConversionRequest(source, raw, dataset_id, name, **{"n_processes": 1, **options})


def write_brisc(folder: Path) -> Path:
    """Writes a BRISC source; see the comments for its quirks."""
    rows = []
    number = 0
    for part, per_class in (("train", 4), ("test", 1)):
        for code, name in (("gl", "glioma"), ("me", "meningioma"), ("no", "no_tumor"), ("pi", "pituitary")):
            for index in range(per_class):
                number += 1
                plane = ("ax", "co", "sa")[index % 3]
                stem = f"brisc2025_{part}_{number:05d}_{code}_{plane}_t1"
                size = (72 + 4 * (number % 3), 72)  # several sizes
                pixels = slice_image(number, size)
                path = folder / "classification_task" / part / name / f"{stem}.jpg"
                if code == "no" and plane != "ax":  # stored upside down or lying, with the tag that says so
                    turns, tag = (2, EXIF_UPSIDE_DOWN) if plane == "co" else (3, EXIF_LYING)
                    save(path, np.rot90(pixels, turns), "RGB", orientation=tag)
                else:
                    save(path, pixels, "RGB" if number % 2 else "L")
                rows.append((part, name, plane, path.relative_to(folder)))
                if code == "no":
                    continue
                task = folder / "segmentation_task" / part
                (task / "images").mkdir(parents=True, exist_ok=True)
                (task / "images" / path.name).write_bytes(path.read_bytes())
                save(task / "masks" / f"{stem}.png", noisy_mask(blob(size), number), content="PNG")
    test_glioma = folder / "classification_task" / "test" / "glioma" / "brisc2025_test_00017_gl_ax_t1.jpg"
    first = folder / "classification_task" / "train" / "glioma" / "brisc2025_train_00001_gl_ax_t1.jpg"
    for task in ("classification_task/test/glioma", "segmentation_task/test/images"):
        (folder / task / test_glioma.name).write_bytes(first.read_bytes())  # identical across train and test
    save(
        folder / "segmentation_task" / "test" / "masks" / f"{test_glioma.stem}.png",
        noisy_mask(blob((76, 72))),
        content="PNG",
    )
    # a tumour that only the classification task has
    stem = "brisc2025_train_00004_gl_ax_t1"
    (folder / "segmentation_task" / "train" / "images" / f"{stem}.jpg").unlink()
    (folder / "segmentation_task" / "train" / "masks" / f"{stem}.png").unlink()
    # one that only the segmentation task has, and whose mask is a JPEG
    stem = "brisc2025_train_00008_me_ax_t1"
    (folder / "classification_task" / "train" / "meningioma" / f"{stem}.jpg").unlink()
    mask = folder / "segmentation_task" / "train" / "masks" / f"{stem}.png"
    save(mask.with_suffix(".jpg"), np.array(Image.open(mask)))
    mask.unlink()
    for rubbish in ("glioma - Shortcut.lnk", "Thumbs.db", "._brisc2025_train_00001_gl_ax_t1.jpg"):
        (first.parent / rubbish).write_bytes(b"rubbish")
        (folder / "segmentation_task" / "train" / "images" / rubbish).write_bytes(b"rubbish")
    planes = {"ax": "axial", "co": "coronal", "sa": "sagittal"}
    lines = ["relative_path,filename,task,split,tumor_code,tumor_label,plane_code,plane_label,sequence"]
    for part, name, plane, path in rows:
        windows = str(path).replace("/", "\\")
        lines.append(f"{windows},{path.name},classification,{part},{name[:2]},{name},{plane},{planes[plane]},T1")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def brisc_path(folder: Path, number: int, kind: str = "classification_task") -> Path:
    """Finds a file of a BRISC source by its number and task (or `masks`)."""
    pattern = f"brisc2025_*_{number:05d}_*"
    (path,) = (path for path in folder.rglob(pattern) if kind in path.as_posix())
    return path


POLYGON = {"name": "polygon", "all_points_x": [40, 60, 60, 40], "all_points_y": [10, 10, 20, 20]}
ELLIPSE = {"name": "ellipse", "cx": 36, "cy": 36, "rx": 20, "ry": 6, "theta": math.pi / 6}
CIRCLE = {"name": "circle", "cx": 20, "cy": 55, "r": 5.5}


def write_br35h(folder: Path) -> Path:
    """Writes a Br35H source; the file names say what is special."""
    shapes = {
        ("TRAIN", "y0"): [POLYGON],
        ("TRAIN", "y1"): [ELLIPSE],
        ("TRAIN", "y2"): [CIRCLE],
        ("TRAIN", "y3"): [POLYGON, ELLIPSE, CIRCLE],
        ("TRAIN", "y4"): [CIRCLE],
        ("VAL", "y500"): [POLYGON],
        ("VAL", "y501"): [CIRCLE],
        ("TEST", "y700"): [ELLIPSE],
    }
    annotations: dict[str, dict[str, Any]] = {"TRAIN": {}, "VAL": {}, "TEST": {}}
    for seed, ((part, stem), regions) in enumerate(shapes.items()):
        path = save(folder / "Br35H-Mask-RCNN" / part / f"{stem}.jpg", slice_image(seed), "RGB" if seed % 2 else "L")
        (folder / "yes").mkdir(exist_ok=True)
        (folder / "yes" / path.name).write_bytes(path.read_bytes())  # all outlined images are in yes as well
        size = path.stat().st_size
        annotations[part][f"{path.name}{size}"] = {
            "filename": path.name,
            "size": size,
            "regions": [{"shape_attributes": shape, "region_attributes": {}} for shape in regions],
            "file_attributes": {},
        }
    for part, content in annotations.items():
        (folder / "Br35H-Mask-RCNN" / part / f"annotations_{part.lower()}.json").write_text(json.dumps(content))
    # in yes alone; PNG under the ending .jpg, in three modes
    for seed, mode in ((100, "L"), (101, "P"), (102, "RGBA")):
        save(folder / "yes" / f"y{seed}.jpg", slice_image(seed), mode, "PNG")
    for seed, name in ((200, "No12.jpg"), (201, "no609.jpg"), (202, "no12.jpg.png"), (203, "no7.jpg")):
        save(folder / "no" / name, slice_image(seed), content="PNG" if name.endswith("png") else "JPEG")
    return folder


def write_kaggle4(folder: Path, sartaj: bool = False) -> Path:
    """Writes a Kaggle four-class source; SARTAJ's folders and file names with `sartaj`."""
    seed = 300
    for part, per_class in (("Training", 4), ("Testing", 2)):
        for name in ("glioma", "meningioma", "notumor", "pituitary"):
            folder_name = name
            if sartaj:
                folder_name = "no_tumor" if name == "notumor" else f"{name}_tumor"
            for index in range(per_class):
                seed += 1
                file_name = f"image({index}).jpg" if sartaj else f"{part[:2]}-{name[:2]}_{index:04d}.jpg"
                save(folder / part / folder_name / file_name, slice_image(seed), "RGB" if index % 2 else "L")
    return folder
