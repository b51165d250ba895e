"""Volumes of one case on one grid: values against the formula that the phantoms were made from, in mm."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from braintum.conversion.building import resampling
from braintum.conversion.building.resampling import (
    Resampling,
    extent_of,
    files_on_one_grid,
    read_resampled,
    transform_of,
)
from braintum.conversion.cli import main
from braintum.conversion.files.volumes import VolumeError, geometry_differences

NAMES = ("T1ce", "FLAIR")
ARGUMENTS = ["--channel", "T1ce=*t1c*", "--channel", "FLAIR=*flair*", "--mask", "*seg*", "-d", "640", "-np", "1"]
NAME = "Dataset640_BrainTumours"


def turned(*degrees: float) -> tuple[float, ...]:
    return sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(degrees)).GetMatrix()


def grid(size: tuple, spacing: tuple, origin: tuple, direction: tuple = turned(0, 0, 0)) -> sitk.Image:
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def points_of(image: sitk.Image) -> np.ndarray:
    """Of all voxels, in mm; (Z, Y, X, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), axis=-1)
    axes = np.array(image.GetDirection()).reshape(3, 3)
    return np.transpose(index * image.GetSpacing() @ axes.T + image.GetOrigin(), (2, 1, 0, 3))


def index_of(points: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Continuous index (x, y, z) in an image."""
    axes = np.array(image.GetDirection()).reshape(3, 3)
    return (points - image.GetOrigin()) @ axes / image.GetSpacing()


def ramp(points: np.ndarray) -> np.ndarray:
    """Linear, so that linear interpolation is exact; no axis looks like another."""
    return 500 + points @ (3.0, -2.0, 1.25)


def tumour(points: np.ndarray) -> np.ndarray:
    """Two boxes in a corner, of different edges."""
    x, y, z = np.moveaxis(points, -1, 0)
    large = (abs(x - 9) < 8.1) & (abs(y + 5) < 6.2) & (abs(z - 4) < 9.3)
    return np.where(large, 1, np.where((abs(x - 22) < 4.1) & (abs(y + 5) < 3.2) & (abs(z - 4) < 4.3), 2, 0))


def filled(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    found = sitk.GetImageFromArray(values)
    found.CopyInformation(image)
    return found


REFERENCE = grid((40, 36, 12), (1.3, 1.1, 4.0), (-20.0, -22.0, -19.0), turned(0, 0, 7))
GRIDS = {
    "finer": grid((64, 60, 52), (0.9, 0.9, 1.0), (-21.0, -24.0, -21.0)),
    "coarser and shifted": grid((20, 20, 9), (2.7, 2.1, 6.5), (-17.3, -20.9, -22.2)),
    "oblique": grid((40, 44, 30), (1.5, 1.4, 2.0), (-22.0, -26.0, -25.0), turned(21, -14, 33)),
    "stored otherwise": sitk.DICOMOrient(
        grid((45, 40, 25), (1.2, 1.3, 2.2), (-22, -24, -20), turned(9, 4, -12)), "PIR"
    ),
}


def write_case(folder: Path, other: sitk.Image, mask_grid: sitk.Image | None, kind: str = ".nii.gz") -> None:
    folder.mkdir(parents=True)
    sitk.WriteImage(filled(REFERENCE, ramp(points_of(REFERENCE)).astype(np.float32)), str(folder / f"t1c{kind}"))
    sitk.WriteImage(filled(other, ramp(points_of(other)).astype(np.float32)), str(folder / f"flair{kind}"))
    if mask_grid is not None:
        mask = tumour(points_of(mask_grid)).astype(np.uint8)
        sitk.WriteImage(filled(mask_grid, mask), str(folder / f"seg{kind}"))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("target", NAMES)
def test_values_on_the_grid_of_the_reference(tmp_path: Path, name: str, target: str) -> None:
    write_case(tmp_path / "case", GRIDS[name], GRIDS[name])
    files = [tmp_path / "case" / f"{channel}.nii.gz" for channel in ("t1c", "flair")]
    mask = tmp_path / "case" / "seg.nii.gz"
    case = read_resampled(files, mask, lambda array, _: array.astype(np.uint8), Resampling.to(target, NAMES))
    other = GRIDS[name]
    reference, moved = (REFERENCE, other) if target == "T1ce" else (other, REFERENCE)
    index = index_of(points_of(reference), moved)
    inside = ((index >= 0) & (index <= np.array(moved.GetSize()) - 1)).all(-1)
    outside = ((index < -0.51) | (index > np.array(moved.GetSize()) - 0.49)).any(-1)
    assert 0.2 < inside.mean() <= 1
    values = sitk.GetArrayFromImage(case.channels[1 - NAMES.index(target)])
    np.testing.assert_allclose(values[inside], ramp(points_of(reference))[inside], atol=0.01)
    assert (values[outside] == 0).all()
    assert not any(geometry_differences(reference, image) for image in case.channels)
    kept = sitk.GetArrayFromImage(case.channels[NAMES.index(target)])
    np.testing.assert_allclose(kept, ramp(points_of(reference)), atol=0.01)

    assert case.mask is not None
    nearest = np.rint(index_of(points_of(reference), other))
    between = (abs(index_of(points_of(reference), other) % 1 - 0.5) < 1e-3).any(-1)  # rounding either way is right
    within = ((nearest >= 0) & (nearest < other.GetSize())).all(-1)
    axes = np.array(other.GetDirection()).reshape(3, 3)
    expected = np.where(within, tumour(nearest * other.GetSpacing() @ axes.T + other.GetOrigin()), 0)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(case.mask[~between], expected[~between])


def test_conversion_names_the_remedy_and_follows_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    for number, name in enumerate(GRIDS):
        write_case(source / f"P{number}", GRIDS[name], GRIDS[name] if number % 2 else REFERENCE)
    command = ["folder", str(source), *ARGUMENTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(raw))
        assert main(command) == 1
        message = capsys.readouterr().err
        assert "not on the grid of" in message and "--resample-to CHANNEL of braintum_convert folder" in message
        assert main([*command, "--resample-to", "T2"]) == 1
        assert "--resample-to T2: the channels are T1ce, FLAIR; name one of them" in capsys.readouterr().err
        assert main([*command, "--register"]) == 1 and "--register needs --resample-to" in capsys.readouterr().err
        assert not raw.exists()
        assert main([*command, "--resample-to", "T1ce"]) == 0
    assert "FLAIR resampled to the grid of T1ce, by the headers: 4 volume(s): P0, P1, P2, P3" in capsys.readouterr().out
    for case in ("P0", "P1", "P2", "P3"):
        for file in (f"imagesTr/{case}_0000", f"imagesTr/{case}_0001", f"labelsTr/{case}"):
            assert not geometry_differences(REFERENCE, sitk.ReadImage(str(raw / NAME / f"{file}.nii.gz")))
    images = [sitk.ReadImage(str(raw / NAME / f"imagesTr/P0_000{channel}.nii.gz")) for channel in (0, 1)]
    t1ce, flair = map(sitk.GetArrayFromImage, images)
    index = index_of(points_of(REFERENCE), GRIDS["finer"])
    inside = ((index >= 0) & (index <= np.array(GRIDS["finer"].GetSize()) - 1)).all(-1)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(flair[inside], t1ce[inside], atol=0.01)
    assert sorted(path.name for path in raw.iterdir()) == [NAME]
    with open(raw / NAME / "cases.csv", newline="") as stream:
        assert {row["spacing"] for row in csv.DictReader(stream)} == {"1.3 1.1 4"}


def test_what_does_not_overlap_is_refused(tmp_path: Path) -> None:
    far = grid((20, 20, 20), (1, 1, 1), (200, 0, 0))
    write_case(tmp_path / "far", far, None)
    files = [tmp_path / "far" / f"{channel}.nii.gz" for channel in ("t1c", "flair")]
    for register in (False, True):
        with pytest.raises(VolumeError, match=r"flair.nii.gz: its field of view and that of .*t1c.nii.gz do not"):
            read_resampled(files, None, lambda array, _: array, Resampling.to("T1ce", NAMES, register))
    write_case(tmp_path / "mask", GRIDS["finer"], far)
    files = [tmp_path / "mask" / f"{channel}.nii.gz" for channel in ("t1c", "flair")]
    with pytest.raises(VolumeError, match=r"seg.nii.gz: its field of view .* do not overlap"):
        read_resampled(files, tmp_path / "mask" / "seg.nii.gz", lambda array, _: array, Resampling.to("T1ce", NAMES))


def test_a_mask_that_vanishes_between_voxels_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "case", GRIDS["finer"], None)
    mask = np.zeros(GRIDS["finer"].GetSize()[::-1], np.uint8)
    nearest = np.rint(index_of(points_of(REFERENCE), GRIDS["finer"])).astype(int).reshape(-1, 3).tolist()
    x = next(x for x in range(20, 40) if [x, 30, 30] not in nearest)
    mask[30, 30, x] = 1
    sitk.WriteImage(filled(GRIDS["finer"], mask), str(tmp_path / "case" / "seg.nii.gz"))
    files = [tmp_path / "case" / f"{channel}.nii.gz" for channel in ("t1c", "flair")]
    options = (tmp_path / "case" / "seg.nii.gz", lambda array, _: array)
    with pytest.raises(VolumeError, match="nothing of the mask is left on the grid of .*t1c.nii.gz"):
        read_resampled(files, *options, Resampling.to("T1ce", NAMES))
    assert read_resampled(files, *options, Resampling.to("FLAIR", NAMES)).mask.sum() == 1


def test_partial_cover_is_told(tmp_path: Path) -> None:
    write_case(tmp_path / "case", grid((30, 30, 10), (1, 1, 2), (0, -10, 0)), None)
    files = [str(tmp_path / "case" / f"{channel}.nii.gz") for channel in ("t1c", "flair")]
    with files_on_one_grid(files, Resampling.to("T1ce", NAMES)) as (readable, remarks):
        assert readable[0] == files[0] and readable[1] != files[1]
        assert not geometry_differences(*map(sitk.ReadImage, readable))
        assert remarks == ["FLAIR covers less than 90% of T1ce: 0 elsewhere"]
    assert not Path(readable[1]).exists()
    with files_on_one_grid(files, None) as (readable, remarks):
        assert (readable, remarks) == (files, [])


# ---------------------------------------------------------------------- registration

MOVE = (0.07, -0.05, 0.09, 4.0, -5.0, 3.0, 0.0, 0.0, 0.0)


def head(points: np.ndarray, inverted: bool = False) -> np.ndarray:
    """An ellipsoid with organs that lie in no plane of symmetry, with soft edges; (Z, Y, X)."""
    blobs = [((0, 0, 0), (38, 46, 34), 100), ((-14, 12, 8), (9, 14, 8), 70), ((17, -9, -6), (7, 8, 12), -60)]
    blobs += [((4, 25, -12), (11, 6, 7), 90), ((-10, -24, 10), (6, 9, 9), 50)]
    total = np.zeros(points.shape[:-1])
    for centre, radii, value in blobs:
        distance = np.linalg.norm((points - centre) / np.array(radii), axis=-1)
        total += value / (1 + np.exp((distance - 1) * 20))
    return (180 - total) * (total > 15) if inverted else total


def write_moved_case(folder: Path) -> tuple[sitk.Image, sitk.Image]:
    """FLAIR of a patient who moved by MOVE after T1ce; its contrast is another. The mask was drawn on FLAIR."""
    fixed = grid((44, 50, 20), (2.2, 2.2, 4.4), (-48, -55, -42))
    moving = grid((50, 52, 26), (2.0, 2.1, 3.3), (-50, -54, -42), turned(3, 0, -4))
    move = transform_of(MOVE)
    inverse = move.GetInverse()
    points = points_of(moving)
    at_first = np.array([inverse.TransformPoint(point) for point in points.reshape(-1, 3).tolist()]).reshape(
        points.shape
    )
    folder.mkdir(parents=True)
    sitk.WriteImage(filled(fixed, head(points_of(fixed)).astype(np.float32)), str(folder / "t1c.nii.gz"))
    sitk.WriteImage(filled(moving, head(at_first, inverted=True).astype(np.float32)), str(folder / "flair.nii.gz"))
    inside = np.linalg.norm((at_first - (-14, 12, 8)) / np.array((9, 14, 8)), axis=-1) < 1
    sitk.WriteImage(filled(moving, inside.astype(np.uint8)), str(folder / "seg.nii.gz"))
    return fixed, moving


@pytest.mark.slow
def test_registration_finds_how_a_patient_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fixed, _ = write_moved_case(tmp_path / "source" / "P1")
    (tmp_path / "source" / "P2").mkdir()
    for file in (tmp_path / "source" / "P1").iterdir():
        (tmp_path / "source" / "P2" / file.name).symlink_to(file)
    found = []
    original = resampling.registered
    monkeypatch.setattr(resampling, "registered", lambda *arguments: found.append(original(*arguments)) or found[-1])
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    command = ["folder", str(tmp_path / "source"), *ARGUMENTS, "--resample-to", "T1ce", "--register"]
    assert main(command) == 0
    assert len(found) == 2  # once a case, not again when it is written
    np.testing.assert_allclose(*found, rtol=1e-6)
    corners = points_of(fixed)[::19, ::49, ::43].reshape(-1, 3).tolist()
    truth, registered = transform_of(MOVE), transform_of(found[0])
    errors = [np.subtract(truth.TransformPoint(p), registered.TransformPoint(p)) for p in corners]
    assert np.linalg.norm(errors, axis=1).max() < 1.5  # mm; a voxel of T1ce has 2.2 × 2.2 × 4.4
    assert min(np.linalg.norm(np.subtract(truth.TransformPoint(p), p)) for p in corners) > 1.5

    raw = tmp_path / "raw"
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / NAME / "labelsTr" / "P1.nii.gz")))
    expected = np.linalg.norm((points_of(fixed) - (-14, 12, 8)) / np.array((9, 14, 8)), axis=-1) < 1
    assert 2 * (mask.astype(bool) & expected).sum() / (mask.sum() + expected.sum()) > 0.85
    pictures = raw / f"registration_{NAME}"
    assert sorted(path.name for path in pictures.iterdir()) == ["P1.png", "P2.png"]
    assert str(pictures) in capsys.readouterr().out
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["remarks"]["FLAIR registered with T1ce: look at the pictures"] == ["P1", "P2"]


def test_a_mask_of_no_channel_does_not_move(tmp_path: Path) -> None:
    write_moved_case(tmp_path / "case")
    own = GRIDS["finer"]
    sitk.WriteImage(filled(own, tumour(points_of(own)).astype(np.uint8)), str(tmp_path / "case" / "seg.nii.gz"))
    files = [tmp_path / "case" / f"{channel}.nii.gz" for channel in ("t1c", "flair")]
    known = Resampling(NAMES, 0, register=True, rigid=((), MOVE))
    with pytest.raises(VolumeError, match="the mask lies on the grid of no channel"):
        read_resampled(files, tmp_path / "case" / "seg.nii.gz", lambda array, _: array, known)


def test_extent_of_a_move() -> None:
    assert extent_of((0, 0, np.deg2rad(30), 3, 0, 4, 0, 0, 0)) == pytest.approx((5, 30))
    assert extent_of((0.0,) * 9) == pytest.approx((0, 0))
