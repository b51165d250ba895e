"""Synthetic head phantoms in the Figshare data set's original layout, for tests and the demonstration.

They look like contrast-enhanced T1 slices from afar: scalp fat, skull, cortex, white matter, ventricles, vessels. A
tumour's type shows in its appearance and in its place, as it does in patients:

- meningioma: bright, homogeneous, sharp, attached to the inner table of the skull;
- glioma: irregular and fuzzy within the white matter, a bright ring around a dark necrotic core;
- pituitary tumour: small, bright and round, on the midline below the centre.

Brightness alone does not find a tumour: fat, vessels and the sagittal sinus are as bright. No patient data are in it.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from skimage.measure import find_contours

logger = logging.getLogger(__name__)

CLASS_LABELS = (1, 2, 3)
N_FOLDS = 5
SLICES_PER_FOLDER = 766
HALF_SIZE_EVERY = 20
"""Every 20th slice has half the size, as fifteen of the original's have."""
USERBLOCK = 512
_HEADER = b"MATLAB 7.3 MAT-file, Platform: PHANTOM".ljust(116) + b"\0" * 8 + b"\x00\x02IM"

# tissue intensities before gain, bias field and noise
FAT, BONE, FLUID, CORTEX, WHITE, ENHANCED = 2300.0, 160.0, 420.0, 980.0, 1350.0, 2250.0
MAX_INTENSITY = 4095
OUTER_SKULL, INNER_SKULL, BRAIN = 0.91, 0.84, 0.81
"""Relative to the scalp's surface at radius 1."""


@dataclass(frozen=True)
class Patient:
    """What the slices of one patient share: angles in radians, lengths relative to half the image's width."""

    label: int
    rotation: float
    shift: tuple[float, float]
    half_axes: tuple[float, float]
    outline: np.ndarray
    gain: float
    bias: np.ndarray
    noise: float
    ventricles: float
    tumour_radius: float
    tumour_angle: float
    tumour_depth: float
    enhancement: float


def write_figshare_phantoms(
    folder: str | Path,
    n_patients: int = 30,
    slices_per_patient: int = 4,
    size: int = 256,
    seed: int = 0,
    with_cvind: bool = True,
) -> list[Path]:
    """Writes a synthetic data set in the Figshare data set's original layout.

    Args:
        folder: receives `brainTumorDataPublic_*/N.mat` and `cvind.mat`.
        n_patients: the classes take turns.
        slices_per_patient: consecutive slices; each patient has a tumour of one class.
        size: width and height in pixels; every 20th slice has half of it.
        seed: the same seed gives the same files.
        with_cvind: write `cvind.mat`, five folds by patient.

    Returns:
        The slices' files, in the order of their numbers.

    Raises:
        ValueError: a number is not positive, or `size` is below 64 or odd.
    """
    if n_patients < 1 or slices_per_patient < 1:
        raise ValueError(f"at least one patient and slice are needed, not {n_patients} and {slices_per_patient}")
    if size < 64 or size % 2:
        raise ValueError(f"size has to be even and at least 64, not {size}")
    folder = Path(folder)
    paths: list[Path] = []
    folds: list[int] = []
    for patient_number in range(n_patients):
        label = CLASS_LABELS[patient_number % len(CLASS_LABELS)]
        patient = draw_patient(np.random.default_rng([seed, patient_number]), label)
        for position in range(slices_per_patient):
            number = len(paths) + 1
            slice_size = size // 2 if number % HALF_SIZE_EVERY == 0 else size
            random = np.random.default_rng([seed, patient_number, position])
            level = (position + 0.5) / slices_per_patient - 0.5
            image, mask = draw_slice(random, patient, slice_size, level)
            first = (number - 1) // SLICES_PER_FOLDER * SLICES_PER_FOLDER + 1
            path = folder / f"brainTumorDataPublic_{first}-{first + SLICES_PER_FOLDER - 1}" / f"{number}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mat(path, image, mask, label, pid=str(100000 + 37 * patient_number))
            paths.append(path)
            # classes take turns, so that whole rounds go to one fold: folds are balanced
            folds.append(patient_number // len(CLASS_LABELS) % N_FOLDS + 1)
    if with_cvind:
        write_cvind(folder / "cvind.mat", folds)
    logger.info("%d phantom slices of %d patients written to %s", len(paths), n_patients, folder)
    return paths


def draw_patient(random: np.random.Generator, label: int) -> Patient:
    """Draws what the slices of one patient share.

    Args:
        random: source of randomness.
        label: 1 meningioma, 2 glioma, 3 pituitary tumour.

    Raises:
        ValueError: `label` is none of these.
    """
    if label == 1:
        radius, angle, depth = random.uniform(0.13, 0.24), random.uniform(-math.pi, math.pi), random.uniform(0.3, 0.7)
    elif label == 2:
        side = random.choice([0.0, math.pi])
        radius, angle, depth = random.uniform(0.15, 0.25), side + random.uniform(-0.8, 0.8), random.uniform(0.38, 0.5)
    elif label == 3:
        radius, angle, depth = (
            random.uniform(0.07, 0.11),
            math.pi / 2 + random.normal(0, 0.06),
            random.uniform(0.3, 0.4),
        )
    else:
        raise ValueError(f"label has to be one of {CLASS_LABELS}, not {label}")
    width = random.uniform(0.66, 0.74)
    return Patient(
        label=label,
        rotation=random.normal(0, 0.08),
        shift=(random.normal(0, 0.03), random.normal(0, 0.03)),
        half_axes=(width, width * random.uniform(1.12, 1.25)),
        outline=random.normal(0, 0.008, size=(2, 3)),
        gain=random.uniform(0.75, 1.25),
        bias=random.normal(0, 0.1, size=5),
        noise=random.uniform(25, 60),
        ventricles=random.uniform(0.8, 1.3),
        tumour_radius=radius,
        tumour_angle=angle,
        tumour_depth=depth,
        enhancement=ENHANCED * random.uniform(0.85, 1.1),
    )


def draw_slice(random: np.random.Generator, patient: Patient, size: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws one axial slice.

    Args:
        random: source of randomness, for what differs between the slices of a patient.
        patient: what does not.
        size: width and height in pixels.
        level: height of the slice, -0.5 to 0.5; head, ventricles and tumour change with it.

    Returns:
        Image (int16) and tumour mask (uint8, 0 and 1), both of shape (size, size), y before x.
    """
    # coordinates of the head: x to the right, y downwards, scalp at radius 1
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    image_y, image_x = np.meshgrid(axis, axis, indexing="ij")
    scale = 1 - 0.25 * level**2
    cos, sin = math.cos(patient.rotation), math.sin(patient.rotation)
    x_shifted, y_shifted = image_x - patient.shift[0], image_y - patient.shift[1]
    x = (cos * x_shifted + sin * y_shifted) / (patient.half_axes[0] * scale)
    y = (-sin * x_shifted + cos * y_shifted) / (patient.half_axes[1] * scale)
    angle = np.arctan2(y, x)
    harmonics = np.arange(2, 5)[:, None, None]
    wave = np.cos(harmonics * angle) * patient.outline[0][:, None, None]
    wave += np.sin(harmonics * angle) * patient.outline[1][:, None, None]
    radius = np.hypot(x, y) / (1 + wave.sum(axis=0))
    x, y = x + 0.05 * _smooth_noise(random, size, 6), y + 0.05 * _smooth_noise(random, size, 6)

    image = _draw_brain(random, patient, size, level, x, y, radius)
    image, mask = _draw_tumour(random, patient, size, level, x, y, radius, image)
    image = _draw_skull(random, size, radius, image)

    bias = 1 + patient.bias[0] * image_x + patient.bias[1] * image_y + patient.bias[2] * image_x * image_y
    bias += patient.bias[3] * image_x**2 + patient.bias[4] * image_y**2
    image = gaussian_filter(image, 0.5 * size / 256) * bias * patient.gain
    # the magnitude of a complex signal with noise in both parts: Rician
    noise = random.normal(0, patient.noise, size=(2, size, size))
    image = np.hypot(image + noise[0], noise[1])
    return np.clip(image, 0, MAX_INTENSITY).astype(np.int16), mask.astype(np.uint8)


def _draw_brain(
    random: np.random.Generator,
    patient: Patient,
    size: int,
    level: float,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:
    texture = _smooth_noise(random, size, 24)
    white_border = 0.62 + 0.06 * _smooth_noise(random, size, 14)
    image = WHITE + 70 * texture + 60 * _smooth_noise(random, size, 5)
    image = _blend(image, CORTEX + 60 * texture, _step(radius - white_border, 0.02))
    # sulci: dark winding lines in the cortex, where a noise field crosses zero
    folds = np.exp(-((_smooth_noise(random, size, 16) / 0.16) ** 2)) * _step(radius - 0.55, 0.05)
    image = _blend(image, FLUID + 100, 0.75 * folds)
    image = _blend(image, FLUID, 0.7 * _step(0.012 - np.abs(x), 0.006) * _step(radius - 0.42, 0.04))

    opening = patient.ventricles * (1 + 0.5 * level)
    for side in (-1, 1):
        across = (x * side - 0.10 - 0.35 * np.abs(y + 0.02) ** 1.5) / (0.055 * opening)
        along = (y + 0.02) / (0.30 * opening)
        image = _blend(image, FLUID, _step(1 - np.hypot(across, along), 0.12))
        nuclei = np.hypot((x * side - 0.24) / 0.09, (y - 0.04) / 0.17)
        image = _blend(image, CORTEX + 60, 0.6 * _step(1 - nuclei, 0.2))
        # choroid plexus: enhances, and is no tumour
        plexus = np.hypot(x * side - 0.13, y - 0.16 * opening) / 0.025
        image = _blend(image, ENHANCED, 0.8 * _step(1 - plexus, 0.3))
    for _ in range(random.integers(6, 12)):
        image = _draw_vessel(random, x, y, radius, image)
    return image


def _draw_vessel(
    random: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """Draws a short bright streak of a width below that of any tumour."""
    place, direction = random.uniform(-math.pi, math.pi), random.uniform(0, math.pi)
    depth, length, width = random.uniform(0.3, 0.75), random.uniform(0.015, 0.10), random.uniform(0.010, 0.018)
    dx, dy = x - depth * math.cos(place), y - depth * math.sin(place)
    along = np.maximum(np.abs(math.cos(direction) * dx + math.sin(direction) * dy) - length, 0)
    across = math.cos(direction) * dy - math.sin(direction) * dx
    vessel = _step(width - np.hypot(along, across), 0.006)
    return _blend(image, ENHANCED * random.uniform(0.8, 1.1), vessel * _step(BRAIN - radius, 0.02))


def _draw_skull(random: np.random.Generator, size: int, radius: np.ndarray, image: np.ndarray) -> np.ndarray:
    image = _blend(image, FLUID, _step(radius - BRAIN, 0.01) * _step(INNER_SKULL - radius, 0.01))
    image = _blend(image, BONE + 60 * _smooth_noise(random, size, 30), _step(radius - INNER_SKULL, 0.01))
    marrow = 0.5 * np.exp(-(((radius - (INNER_SKULL + OUTER_SKULL) / 2) / 0.012) ** 2))
    image = _blend(image, CORTEX, marrow)
    image = _blend(image, FAT + 200 * _smooth_noise(random, size, 20), _step(radius - OUTER_SKULL, 0.01))
    return image * _step(1 - radius, 0.01)


def _draw_tumour(
    random: np.random.Generator,
    patient: Patient,
    size: int,
    level: float,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    image: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the tumour and the sagittal sinus, which looks like one; returns image and mask (bool)."""
    sinus = np.hypot(x / 0.045, (y - BRAIN + 0.02) / 0.045)
    image = _blend(image, ENHANCED, _step(1 - sinus, 0.15))

    extent = patient.tumour_radius * (1 - 0.8 * level**2) * random.uniform(0.92, 1.05)
    # a meningioma's centre lies so deep that 30 to 70 % of its radius is outside the skull, where it is cut off
    distance = BRAIN - extent * patient.tumour_depth if patient.label == 1 else patient.tumour_depth
    dx = x - distance * math.cos(patient.tumour_angle)
    dy = y - distance * math.sin(patient.tumour_angle)
    polar = np.arctan2(dy, dx)
    irregularity = {1: 0.05, 2: 0.13, 3: 0.03}[patient.label]
    outline = np.ones_like(x)
    for order in range(2, 7):
        outline += (
            irregularity
            / math.sqrt(order - 1)
            * random.normal()
            * np.cos(order * polar + random.uniform(0, 2 * math.pi))
        )
    relative = np.hypot(dx, dy) / (extent * np.clip(outline, 0.5, 1.6))
    grain = _smooth_noise(random, size, 30)

    if patient.label == 1:
        relative = np.maximum(relative, 1 + (radius - INNER_SKULL) / extent)
        image = _blend(image, patient.enhancement + 40 * grain, _step(1 - relative, 0.02 / extent * 0.5))
    elif patient.label == 2:
        relative = relative + 0.08 * _smooth_noise(random, size, 12)
        relative = np.maximum(relative, 1 + (radius - BRAIN) / extent)
        oedema = _step(1.5 + 0.2 * _smooth_noise(random, size, 8) - relative, 0.2) * _step(BRAIN - radius, 0.02)
        image = _blend(image, 0.72 * WHITE, 0.7 * oedema)
        ring = _step(1 - relative, 0.12) * (1 + 0.15 * _smooth_noise(random, size, 8))
        image = _blend(image, patient.enhancement + 120 * grain, np.clip(ring, 0, 1))
        image = _blend(
            image, FLUID + 150 + 120 * grain, _step(0.62 + 0.1 * _smooth_noise(random, size, 10) - relative, 0.1)
        )
    else:
        cistern = np.hypot(dx / 1.9, dy / 1.4) / extent
        image = _blend(image, FLUID, 0.85 * _step(1 - cistern, 0.15))
        image = _blend(image, 0.93 * patient.enhancement + 60 * grain, _step(1 - relative, 0.12))
    return image, relative < 1


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Returns 0 for negative and 1 for positive distances, with a smooth transition."""
    return 1 / (1 + np.exp(-np.clip(4 * distance / softness, -30, 30)))


def _blend(below: np.ndarray, above: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
    return below + (above - below) * weight


def _smooth_noise(random: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Returns noise of mean 0 and standard deviation of about 1 with `cells` bumps across; shape (size, size)."""
    coarse = random.normal(size=(cells, cells))
    smooth = zoom(coarse, size / cells, order=3, mode="nearest", grid_mode=True)
    return smooth / max(float(smooth.std()), 1e-6)


def write_mat(path: Path, image: np.ndarray, mask: np.ndarray, label: int, pid: str) -> None:
    """Writes one slice as the original does: MATLAB v7.3, which is HDF5 with transposed arrays behind a header.

    Args:
        path: the file.
        image: int16, shape (Y, X).
        mask: 0 and 1, shape (Y, X).
        label: 1 to 3.
        pid: the patient's identifier.
    """
    border = max(find_contours(np.pad(mask, 1).astype(float), 0.5), key=len)  # (points, 2), y before x
    points = border[:, ::-1].reshape(1, -1)  # padding by one pixel makes them 1-based
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        group = file.create_group("cjdata")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        codes = np.array([[ord(letter)] for letter in pid], np.uint16)
        _add(group, "PID", codes, "char").attrs["MATLAB_int_decode"] = np.int32(2)
        _add(group, "image", image.T, "int16", packed=True)
        _add(group, "label", np.array([[float(label)]]), "double")
        _add(group, "tumorBorder", points, "double")
        logical = _add(group, "tumorMask", mask.T.astype(np.uint8), "logical", packed=True)
        logical.attrs["MATLAB_int_decode"] = np.int32(1)
    _write_header(path)


def write_cvind(path: Path, folds: Sequence[float]) -> None:
    """Writes `cvind.mat`: the 1-based fold of every slice, by number; MATLAB's N × 1 is 1 × N in HDF5."""
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        _add(file, "cvind", np.array([folds], float), "double")
    _write_header(path)


def _add(group: h5py.Group, name: str, data: np.ndarray, matlab_class: str, packed: bool = False) -> h5py.Dataset:
    options = {"compression": "gzip", "compression_opts": 1, "chunks": True} if packed else {}
    dataset = group.create_dataset(name, data=data, **options)
    dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)
    return dataset


def _write_header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(_HEADER.ljust(USERBLOCK, b"\0"))
