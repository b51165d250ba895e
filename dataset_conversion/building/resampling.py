"""The volumes of a case on one grid, where a scanner gave each sequence a grid of its own.

Headers say where voxels lie in the scanner; that suffices unless the patient moved between two sequences. Then rigid
registration may help: SimpleITK's, by Mattes' mutual information (D. Mattes et al., IEEE Trans. Med. Imaging 22, 2003,
https://doi.org/10.1109/TMI.2003.809072) over three resolutions, from the position that the headers give. It can fail,
so that somebody has to look at the pictures.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from braintum.conversion.building.volume_reading import Volume, read_volumes
from braintum.conversion.files.volumes import VolumeError, geometry_differences, image_like, whole_numbers

FULL_COVERAGE = 0.9
"""A share of the reference grid below which a remark says that a channel does not cover it."""
KEPT_VOLUME = 0.1
"""A relative change of a mask's volume beyond which a remark says so."""
USUAL_MOVE = (20.0, 15.0)
"""mm and degrees: a head moves no further between two sequences of one examination."""

Rigid = tuple[float, ...]
"""Three angles in radians, three shifts in mm, and the centre of rotation; empty: the position that headers give."""


@dataclass(frozen=True)
class Resampling:
    """How the volumes of a case come on one grid.

    Attributes:
        names: of the channels.
        reference: number of the channel whose grid all get.
        register: also align the other channels with it.
        rigid: of each channel, where it is known already.
    """

    names: tuple[str, ...]
    reference: int
    register: bool = False
    rigid: tuple[Rigid, ...] = ()

    @classmethod
    def to(cls, channel: str, names: Sequence[str], register: bool = False) -> "Resampling":
        """Makes it for a channel's name.

        Raises:
            ValueError: there is no such channel.
        """
        if channel not in names:
            raise ValueError(f"--resample-to {channel}: the channels are {', '.join(names)}; name one of them")
        return cls(tuple(names), tuple(names).index(channel), register)


@dataclass(frozen=True)
class ResampledCase:
    """The volumes of a case on one grid.

    Attributes:
        channels: on the grid of the reference.
        mask: labels on that grid, shape (Z, Y, X); None where there is none.
        remarks: what the user should know.
        changed: whether each channel is another than its file holds.
        resampling: with what registration found.
        before: the channels by their headers alone, where they were registered.
    """

    channels: tuple[sitk.Image, ...]
    mask: np.ndarray | None
    remarks: tuple[str, ...]
    changed: tuple[bool, ...]
    resampling: Resampling
    before: tuple[sitk.Image, ...] = ()


def read_resampled(
    channels: Sequence[Volume],
    mask: Volume | None,
    map_labels: Callable[[np.ndarray, Volume], np.ndarray],
    resampling: Resampling,
) -> ResampledCase:
    """Reads the volumes of a case onto the grid of one of its channels.

    Images are interpolated linearly (float32, 0 outside of their field of view), the mask by the nearest neighbour. It
    moves with the channel on whose grid it was drawn.

    Args:
        channels: as of `volume_reading.read_case`.
        mask: likewise.
        map_labels: likewise.
        resampling: onto which grid, and how.

    Raises:
        VolumeError: a volume cannot be read, does not overlap with the reference, or cannot be registered; or the mask
            vanishes on its grid, or was drawn on the grid of no channel that was registered.
    """
    volumes, problems = read_volumes(channels, mask)
    if problems:
        raise VolumeError(*problems)
    images, target = [volumes[path] for path in channels], channels[resampling.reference]
    reference, target_name = volumes[target], resampling.names[resampling.reference]
    if resampling.register and not resampling.rigid:
        pairs = zip(channels, images, strict=True)
        found = tuple(() if path == target else registered(image, reference, path, target) for path, image in pairs)
        resampling = replace(resampling, rigid=found)
    rigid: tuple[Rigid, ...] = resampling.rigid or ((),) * len(images)
    remarks: list[str] = []
    changed, resampled, before = [], [], []
    for name, path, image, move in zip(resampling.names, channels, images, rigid, strict=True):
        differs = bool(geometry_differences(reference, image))
        if differs and share_covered(image, reference, move, path, target) < FULL_COVERAGE:
            remarks.append(f"{name} covers less than {FULL_COVERAGE:.0%} of {target_name}: 0 elsewhere")
        if differs and not move:
            remarks.append(f"{name} resampled to the grid of {target_name}, by the headers")
        if move:
            remarks.append(f"{name} registered with {target_name}: look at the pictures")
            shift, angle = extent_of(move)
            if shift > USUAL_MOVE[0] or angle > USUAL_MOVE[1]:
                remarks.append(f"{name} moved by more than {USUAL_MOVE[0]:g} mm or {USUAL_MOVE[1]:g}°: is it right?")
        changed.append(differs or bool(move))
        resampled.append(resample(image, reference, move) if changed[-1] else image)
        if any(rigid):
            before.append(resample(image, reference) if differs else image)
    labels = None
    if mask is not None:
        drawn = image_like(map_labels(whole_numbers(volumes[mask], mask), mask), volumes[mask])
        labels, remark = _mask_on_grid(drawn, mask, images, resampling, target)
        remarks += remark
    return ResampledCase(tuple(resampled), labels, tuple(remarks), tuple(changed), resampling, tuple(before))


def _mask_on_grid(
    drawn: sitk.Image, path: Volume, images: Sequence[sitk.Image], resampling: Resampling, target: Volume
) -> tuple[np.ndarray, list[str]]:
    """The mask on the grid of the reference, and remarks."""
    reference = images[resampling.reference]
    if not geometry_differences(reference, drawn):
        return sitk.GetArrayFromImage(drawn), []
    move: Rigid = ()
    if resampling.register:
        grids = (number for number, image in enumerate(images) if not geometry_differences(image, drawn))
        if (own := next(grids, None)) is None:
            raise VolumeError(
                f"{path}: the mask lies on the grid of no channel, so that nobody knows with which it moves; leave "
                "--register out, or resample it onto the channel that it was drawn on"
            )
        move = resampling.rigid[own]
    share_covered(drawn, reference, move, path, target)
    labels = sitk.GetArrayFromImage(resample(drawn, reference, move, is_mask=True))
    before, after = (
        np.count_nonzero(array) * float(np.prod(image.GetSpacing()))
        for array, image in ((sitk.GetArrayViewFromImage(drawn), drawn), (labels, reference))
    )
    if before and not after:
        raise VolumeError(
            f"{path}: nothing of the mask is left on the grid of {target}: it lies outside, or between the voxels; "
            "name the channel that it was drawn on with --resample-to"
        )
    if abs(after - before) <= KEPT_VOLUME * before:
        return labels, []
    name = resampling.names[resampling.reference]
    return labels, [f"the mask's volume changed by more than {KEPT_VOLUME:.0%} on the grid of {name}"]


def resample(image: sitk.Image, reference: sitk.Image, move: Rigid = (), is_mask: bool = False) -> sitk.Image:
    """Returns a volume on the grid of another one: linearly in float32, a mask by the nearest neighbour; 0 outside."""
    interpolator, kind = sitk.sitkLinear, sitk.sitkFloat32
    if is_mask:
        interpolator, kind = sitk.sitkNearestNeighbor, image.GetPixelID()
    return sitk.Resample(image, reference, transform_of(move), interpolator, 0.0, kind)


def transform_of(move: Rigid) -> sitk.Transform:
    """Returns the transform from points of the reference to those of the moved volume."""
    if not move:
        return sitk.Transform(3, sitk.sitkIdentity)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(move[6:])
    transform.SetParameters(move[:6])
    return transform


def extent_of(move: Rigid) -> tuple[float, float]:
    """Returns how far a rigid transform moves its centre, in mm, and by how many degrees it turns."""
    turn = np.array(sitk.Euler3DTransform(transform_of(move)).GetMatrix()).reshape(3, 3)
    return math.hypot(*move[3:6]), math.degrees(math.acos(float(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def share_covered(image: sitk.Image, reference: sitk.Image, move: Rigid, path: Volume, target: Volume) -> float:
    """Returns the share of the reference's voxels that lie within the field of view of a volume.

    Raises:
        VolumeError: none does.
    """
    inside = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    inside.CopyInformation(image)
    share = float(sitk.GetArrayFromImage(resample(inside, reference, move, is_mask=True)).mean())
    if share == 0:
        raise VolumeError(
            f"{path}: its field of view and that of {target} do not overlap: it is of another part of the body, of "
            "another examination, or its header is wrong; remove it, or export it again"
        )
    return share


def registered(image: sitk.Image, reference: sitk.Image, path: Volume, target: Volume) -> Rigid:
    """Aligns a volume rigidly with another one; see the module's docstring. Repeatable, to rounding.

    Raises:
        VolumeError: it did not work, or made the agreement worse.
    """
    share_covered(image, reference, (), path, target)
    fixed, moving = (sitk.Cast(volume, sitk.sitkFloat32) for volume in (reference, image))
    size = [(edge - 1) / 2 for edge in reference.GetSize()]
    start = sitk.Euler3DTransform()
    start.SetCenter(reference.TransformContinuousIndexToPhysicalPoint(size))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, seed=1)  # the points are shifted at random within their voxels
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([3.0, 1.5, 0.0])  # mm
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(start, inPlace=True)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # with more, runs differ by 1e-4 mm
    try:
        before = method.MetricEvaluate(fixed, moving)
        method.Execute(fixed, moving)
        after = method.MetricEvaluate(fixed, moving)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise VolumeError(
            f"{path}: registration with {target} did not work ({reason}); leave --register out"
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    if not after < before:  # the negative of the mutual information
        return (*(0.0,) * 6, *start.GetCenter())
    return (*start.GetParameters(), *start.GetCenter())


@contextmanager
def files_on_one_grid(files: Sequence[str], resampling: Resampling | None) -> Iterator[tuple[list[str], list[str]]]:
    """Files of a case as a reader of nnU-Net may have them: on one grid, by their headers, as long as this is entered.

    Args:
        files: one a channel.
        resampling: onto which grid; None leaves the files alone.

    Returns:
        The files, resampled ones where their grid differs, and remarks.

    Raises:
        VolumeError: see `read_resampled`.
    """
    if resampling is None:
        yield list(files), []
        return
    found = read_resampled([Path(file) for file in files], None, lambda array, path: array, resampling)
    with tempfile.TemporaryDirectory(prefix="braintum-") as folder:
        readable = []
        for file, image, is_changed in zip(files, found.channels, found.changed, strict=True):
            if is_changed:
                file = str(Path(folder, Path(file).name.removesuffix(".gz")))
                sitk.WriteImage(image, file)
            readable.append(file)
        yield readable, [remark for remark in found.remarks if "covers" in remark]
