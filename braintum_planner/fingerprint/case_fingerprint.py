"""One case of the fingerprint: everything that its files tell, from one reading of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from braintum.conversion.files.orientation import orientation_of
from braintum.planner.fingerprint.intensity_fingerprint import ChannelStatistics, channel_statistics
from braintum.planner.fingerprint.tumour_fingerprint import TumourStatistics, tumour_statistics

COMPACT_TYPES = (np.uint8, np.int16, np.uint16)
_LARGEST_LABEL = 2**16 - 1  # voxels are counted by value


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case and how to read them.

    Attributes:
        case: nnU-Net's case identifier.
        images: one file a channel.
        label: the label map.
        reader: nnU-Net's reader of such files.
        ignore_label: value of the ignore label, if one is declared.
        num_foreground_samples: voxels that nnU-Net's statistics draw from the foreground.
        num_samples: voxels of each of our samples.
    """

    case: str
    images: tuple[str, ...]
    label: str
    reader: type[BaseReaderWriter]
    ignore_label: int | None
    num_foreground_samples: int
    num_samples: int


@dataclass(frozen=True)
class CaseFingerprint:
    """What one case adds to the fingerprint.

    Attributes:
        spacing: (z, y, x), as nnU-Net's reader gives it.
        shape: (z, y, x) of the image.
        shape_after_crop: (z, y, x) of the box around its non-zero voxels.
        foreground_samples: what nnU-Net draws from each channel's foreground; empty without foreground. In a small
            type where it holds them exactly, since processes hand them over.
        channels: intensities of each channel.
        tumour: the label map.
        orientation: of the array, as nnU-Net's reader gives it; see
            :func:`braintum.conversion.files.orientation.orientation_of`.
    """

    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    shape_after_crop: tuple[int, ...]
    foreground_samples: tuple[np.ndarray, ...]
    channels: tuple[ChannelStatistics, ...]
    tumour: TumourStatistics
    orientation: str


def analyse_case(files: CaseFiles) -> CaseFingerprint:
    """Read a case and describe it.

    Raises:
        ValueError: a file is not readable, holds NaN or infinity, or images and label map do not fit together; the
            message names it and what to do.
    """
    images, properties = _read(files.reader().read_images, list(files.images))
    labels, _ = _read(files.reader().read_seg, files.label)
    spacing = tuple(float(edge) for edge in properties["spacing"])
    segmentation = _checked(files, images, labels, spacing)
    box = _nonzero_box(images)
    cropped = images[(slice(None),) + box]
    # nnU-Net takes everything above 0 for foreground, voxels that nobody labelled included
    foreground = (
        segmentation if files.ignore_label is None else np.where(segmentation == files.ignore_label, 0, segmentation)
    )
    samples, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        foreground[box][None], cropped, num_samples=files.num_foreground_samples
    )
    return CaseFingerprint(
        spacing=spacing,
        shape=images.shape[1:],
        shape_after_crop=cropped.shape[1:],
        foreground_samples=tuple(_compact(np.asarray(sample, images.dtype)) for sample in samples),
        channels=tuple(channel_statistics(channel, files.num_samples) for channel in images),
        tumour=tumour_statistics(segmentation, spacing, files.ignore_label),
        orientation=orientation_of(properties),
    )


def _read(reader: Any, source: Any) -> tuple[np.ndarray, dict]:
    try:
        return reader(source)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:  # each reader has its own
        names = source if isinstance(source, str) else ", ".join(source)
        message = str(error).strip().splitlines()
        raise ValueError(
            f"{names}: not readable as one case ({message[-1] if message else type(error).__name__}); all files of a "
            "case need the same shape and geometry: export them again, or remove the case"
        ) from error


def _checked(files: CaseFiles, images: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The label map as integers (Z, Y, X).

    Raises:
        ValueError: see :func:`analyse_case`.
    """
    if not np.isfinite(labels).all():
        raise ValueError(f"{files.label}: label map with NaN or infinity; export it with whole numbers")
    if labels.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"{files.label}: label map of shape {labels.shape[1:]}, but {files.images[0]} has {images.shape[1:]}; "
            "resample the mask onto the image's grid"
        )
    segmentation = labels[0].astype(np.int32)
    if (segmentation != labels[0]).any() or segmentation.min() < 0:
        raise ValueError(f"{files.label}: label map with fractions or negative values; labels are whole numbers from 0")
    if segmentation.max() > _LARGEST_LABEL:
        raise ValueError(
            f"{files.label}: value {segmentation.max()} in a label map; labels count from 0, so this is another image"
        )
    if not all(np.isfinite(edge) and edge > 0 for edge in spacing):
        raise ValueError(f"{files.images[0]}: spacing {spacing} has to be positive; correct it in the file's header")
    # the sum of finite float32 values in float64 is finite: one pass, no array of flags
    bad = [number for number, image in enumerate(images) if not np.isfinite(image.sum(dtype=np.float64))]
    if bad:
        name = files.images[bad[0]] if len(files.images) == len(images) else f"{files.images[0]}, channel {bad[0]}"
        raise ValueError(
            f"{name}: {np.count_nonzero(~np.isfinite(images[bad[0]]))} voxels are NaN or infinite; replace them "
            "(by 0 outside the head), or remove the case"
        )
    return segmentation


def _nonzero_box(images: np.ndarray) -> tuple[slice, ...]:
    """The box that nnU-Net crops to: around voxels that are not zero in some channel.

    nnU-Net fills holes first, which never changes the box. An image without such a voxel is not cropped.
    """
    nonzero = (images != 0).any(0)
    box = []
    for axis in range(3):
        line = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(line[0]), int(line[-1]) + 1) if line.size else slice(0, nonzero.shape[axis]))
    return tuple(box)


def _compact(samples: np.ndarray) -> np.ndarray:
    for small in COMPACT_TYPES:
        limits = np.iinfo(small)
        if samples.size and limits.min <= samples.min() and samples.max() <= limits.max:
            compact = samples.astype(small)
            if (compact == samples).all():
                return compact
    return samples
