"""The synthetic Figshare data set: original layout, reproducible, classes that differ in appearance and place."""

import h5py
import numpy as np
import pytest
from phantom_data import digest

from braintum.conversion.sources.figshare import Slice, read_slice
from braintum.conversion.sources.phantoms import draw_patient, draw_slice, write_figshare_phantoms

SLICES_EACH = 8


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return folder, write_figshare_phantoms(folder, n_patients=12, slices_per_patient=2, size=64)


@pytest.fixture(scope="module")
def drawn():
    """Slices of each class: image, mask."""
    slices = {}
    for label in (1, 2, 3):
        randoms = [np.random.default_rng([label, number]) for number in range(SLICES_EACH)]
        slices[label] = [draw_slice(random, draw_patient(random, label), 128, 0.0) for random in randoms]
    return slices


@pytest.mark.slow
def test_files_have_the_original_layout(phantoms):
    folder, paths = phantoms
    assert [path.name for path in paths] == [f"{number}.mat" for number in range(1, 25)]
    assert {path.parent.name for path in paths} == {"brainTumorDataPublic_1-766"}
    assert paths[0].read_bytes()[:6] == b"MATLAB"
    with h5py.File(paths[0]) as file:
        assert file.userblock_size == 512
        assert set(file["cjdata"]) == {"PID", "image", "label", "tumorBorder", "tumorMask"}
        assert file["cjdata"].attrs["MATLAB_class"] == b"struct"
        assert file["cjdata/image"].dtype == np.int16
        assert file["cjdata/PID"].dtype == np.uint16
        assert file["cjdata/tumorMask"].attrs["MATLAB_class"] == b"logical"
    with h5py.File(folder / "cvind.mat") as file:
        assert file["cvind"].shape == (1, 24)
        assert set(np.unique(file["cvind"][()])) == {1.0, 2.0, 3.0, 4.0}


def test_border_is_x_then_y_and_counts_from_one(phantoms):
    _, paths = phantoms
    with h5py.File(paths[0]) as file:
        points = file["cjdata/tumorBorder"][()].reshape(-1, 2)
        rows, columns = np.nonzero(file["cjdata/tumorMask"][()].T)
    assert points[:, 0].min() == pytest.approx(columns.min() + 1, abs=0.5)
    assert points[:, 0].max() == pytest.approx(columns.max() + 1, abs=0.5)
    assert points[:, 1].min() == pytest.approx(rows.min() + 1, abs=0.5)
    assert points[:, 1].max() == pytest.approx(rows.max() + 1, abs=0.5)


def test_every_slice_can_be_read_and_one_has_half_the_size(phantoms):
    _, paths = phantoms
    slices = [content for content in map(read_slice, paths) if isinstance(content, Slice)]
    assert len(slices) == len(paths)
    assert [content.image.shape for content in slices].count((32, 32)) == 1
    assert slices[19].image.shape == (32, 32)
    assert len({content.patient for content in slices}) == 12
    assert all(content.image.min() >= 0 and content.image.max() <= 4095 for content in slices)


@pytest.mark.slow
def test_the_seed_decides_every_byte(phantoms, tmp_path):
    folder, _ = phantoms
    write_figshare_phantoms(tmp_path / "same", n_patients=12, slices_per_patient=2, size=64)
    write_figshare_phantoms(tmp_path / "other", n_patients=12, slices_per_patient=2, size=64, seed=1, with_cvind=False)
    assert digest(tmp_path / "same") == digest(folder)
    other = digest(tmp_path / "other")
    assert "cvind.mat" not in other
    assert all(value != digest(folder)[name] for name, value in other.items())


@pytest.mark.slow
def test_classes_differ_in_appearance(drawn):
    def core_to_rim(image, mask):
        rows, columns = np.nonzero(mask)
        distance = np.hypot(rows - rows.mean(), columns - columns.mean())
        values = image[rows, columns]
        return values[distance < 0.35 * distance.max()].mean() / values[distance > 0.55 * distance.max()].mean()

    ratios = {label: np.median([core_to_rim(*slice_) for slice_ in slices]) for label, slices in drawn.items()}
    assert ratios[2] < 0.7  # necrotic core
    assert 0.9 < ratios[1] < 1.2
    areas = {label: np.median([mask.sum() for _, mask in slices]) for label, slices in drawn.items()}
    assert areas[3] < 0.6 * min(areas[1], areas[2])


def test_classes_differ_in_place(drawn):
    centres = {
        label: np.array([np.argwhere(mask).mean(axis=0) / 128 - 0.5 for _, mask in slices])
        for label, slices in drawn.items()
    }
    assert np.abs(centres[3][:, 1]).max() < 0.1  # midline
    assert centres[3][:, 0].min() > 0.03  # below the centre
    assert np.hypot(*centres[1].T).min() > np.hypot(*centres[2].T).max()  # at the skull, against white matter


def test_no_threshold_finds_the_tumour(drawn):
    def dice(found, mask):
        return 2 * (found & mask).sum() / (found.sum() + mask.sum())

    best = [
        max(dice(image > threshold, mask == 1) for threshold in range(200, 4000, 50))
        for slices in drawn.values()
        for image, mask in slices
    ]
    assert np.median(best) < 0.3
    assert max(best) < 0.6


@pytest.mark.parametrize("arguments", [{"n_patients": 0}, {"slices_per_patient": 0}, {"size": 32}, {"size": 129}])
def test_impossible_requests_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError):
        write_figshare_phantoms(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="label has to be one of"):
        draw_patient(np.random.default_rng(0), 4)
