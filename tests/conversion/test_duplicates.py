"""The duplicate search finds copies of every kind, and takes no neighbouring slice for one."""

import io
import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from braintum.conversion.duplicates.duplicate_check import COPY_SCORE, check_candidates
from braintum.conversion.duplicates.duplicate_index import N_VARIANTS, find_candidates, inverse_variant, variant
from braintum.conversion.duplicates.duplicates import (
    KINDS,
    TRANSFORMATIONS,
    DuplicatePair,
    find_duplicates,
    group_pairs,
    match_fingerprints,
    near_duplicate_groups,
)
from braintum.conversion.duplicates.fingerprints import COARSE, FRAME, Fingerprint, describe, fingerprint
from braintum.conversion.duplicates.image_reading import (
    MIN_DECODED,
    GreyImage,
    UnreadableImageError,
    central_slice,
    is_image,
    read_grey,
    read_labels,
)
from braintum.conversion.sources.phantoms import draw_patient, draw_slice

N_PATIENTS, SLICES_PER_PATIENT, SIZE = 6, 5, 160
TEST_DATA = os.environ.get("BRAINTUM_TEST_DATA")
needs_test_data = pytest.mark.skipif(not TEST_DATA, reason="BRAINTUM_TEST_DATA is not set")


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """PNG files: neighbouring slices of six patients."""
    folder = tmp_path_factory.mktemp("slices")
    paths = []
    for number in range(N_PATIENTS):
        patient = draw_patient(np.random.default_rng(number), number % 3 + 1)
        for position in range(SLICES_PER_PATIENT):
            level = (position + 0.5) / SLICES_PER_PATIENT - 0.5
            random = np.random.default_rng([number, position])
            image, _ = draw_slice(random, patient, SIZE, level)
            paths.append(folder / f"patient{number}_slice{position}.png")
            Image.fromarray(np.clip(image / 12, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def gamma(image, exponent):
    return image.point([round(255 * (value / 255) ** exponent) for value in range(256)])


def padded(image):
    return ImageOps.expand(image, (20, 5, 3, 9), fill=image.getpixel((0, 0)))


T = Image.Transpose
COPIES = {
    "quality 50": (lambda image: image, "jpg", 50, "re-encoded", "none"),
    "lossless": (lambda image: image, "bmp", None, "re-encoded", "none"),
    "darker": (lambda image: image.point(lambda value: value * 0.6), "png", None, "re-encoded", "none"),
    "gamma 0.8": (lambda image: gamma(image, 0.8), "jpg", 90, "re-encoded", "none"),
    "gamma 1.2": (lambda image: gamma(image, 1.2), "jpg", 90, "re-encoded", "none"),
    "colour": (lambda image: image.convert("RGB"), "jpg", 90, "re-encoded", "none"),
    "224": (lambda image: image.resize((224, 224)), "jpg", 90, "resized", "none"),
    "stretched": (lambda image: image.resize((200, 130)), "jpg", 90, "resized", "none"),
    "crop 3 %": (lambda image: image.crop((4, 1, SIZE - 1, SIZE - 4)), "jpg", 90, "cropped", "none"),
    "crop 6 %": (lambda image: image.crop((5, 5, SIZE - 5, SIZE - 5)), "jpg", 90, "cropped", "none"),
    "padded": (padded, "png", None, "cropped", "none"),
    "left-right": (ImageOps.mirror, "png", None, "mirrored", "mirrored left-right"),
    "left-right, small, quality 50": (
        lambda image: ImageOps.mirror(image).resize((112, 112)),
        "jpg",
        50,
        "mirrored",
        "mirrored left-right",
    ),
    "left-right, crop": (
        lambda image: ImageOps.mirror(image).crop((2, 3, SIZE - 3, SIZE - 2)),
        "jpg",
        90,
        "mirrored",
        "mirrored left-right",
    ),
    "top-bottom": (ImageOps.flip, "jpg", 90, "mirrored", "mirrored top-bottom"),
    "90": (lambda image: image.transpose(T.ROTATE_90), "jpg", 90, "rotated", "rotated by 90° anticlockwise"),
    "180": (lambda image: image.transpose(T.ROTATE_180), "jpg", 90, "rotated", "rotated by 180°"),
    "270": (lambda image: image.transpose(T.ROTATE_270), "jpg", 90, "rotated", "rotated by 90° clockwise"),
    "transposed": (
        lambda image: image.transpose(T.TRANSPOSE),
        "png",
        None,
        "mirrored",
        "mirrored at the main diagonal",
    ),
    "transversed": (
        lambda image: image.transpose(T.TRANSVERSE),
        "png",
        None,
        "mirrored",
        "mirrored at the other diagonal",
    ),
}
"""Name -> change, file ending, JPEG quality, expected kind and transformation."""


@pytest.fixture(scope="module")
def slice_prints(slices):
    return [fingerprint(path) for path in slices]


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_planted_copies_are_found_and_nothing_else(name, slices, slice_prints, tmp_path):
    change, ending, quality, kind, transformation = COPIES[name]
    chosen = range(0, len(slices), 4)
    copies = []
    for index in chosen:
        copies.append(tmp_path / f"{index}.{ending}")
        with Image.open(slices[index]) as image:
            change(image).save(copies[-1], **({"quality": quality} if quality else {}))
    pairs = match_fingerprints([*slice_prints, *map(fingerprint, copies)])
    expected = [(index, len(slices) + number, kind, transformation) for number, index in enumerate(chosen)]
    assert [(pair.first, pair.second, pair.kind, pair.transformation) for pair in pairs] == expected
    assert all(COPY_SCORE <= pair.score <= 1 for pair in pairs)


def test_neighbouring_slices_are_no_duplicates(slice_prints):
    assert match_fingerprints(slice_prints) == []
    # but they are alike: the test would prove nothing otherwise
    fine, coarse = ([getattr(image, name) for image in slice_prints] for name in ("fine", "coarse"))
    neighbours = np.array([(i, i + 1, 0) for i in range(0, len(slice_prints), SLICES_PER_PATIENT)])
    assert check_candidates(fine, coarse, neighbours).scores.max() > 0.5


def test_exact_copies(slices, tmp_path):
    copy = Path(shutil.copy(slices[3], tmp_path / "copy.png"))
    pairs = find_duplicates([copy, *slices[:6]], 1)
    assert pairs == [DuplicatePair(0, 4, "exact", "none", 1.0)]


def test_a_near_duplicate_is_one_of_all_exact_copies(slices, tmp_path):
    copy = Path(shutil.copy(slices[0], tmp_path / "copy.png"))
    mirrored = tmp_path / "mirrored.png"
    ImageOps.mirror(Image.open(slices[0])).save(mirrored)
    paths = [mirrored, *slices[:4], copy]
    pairs = find_duplicates(paths, 1)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        (0, 1, "mirrored"),
        (0, 5, "mirrored"),
        (1, 5, "exact"),
    ]
    assert near_duplicate_groups(paths, 1) == [[0, 1, 5]]


def test_the_transformation_leads_from_the_first_to_the_second(slices, tmp_path):
    turned = tmp_path / "turned.png"
    Image.open(slices[0]).transpose(T.ROTATE_90).save(turned)
    (forward,) = find_duplicates([slices[0], turned], 1)
    (backward,) = find_duplicates([turned, slices[0]], 1)
    assert forward.transformation == "rotated by 90° anticlockwise"
    assert backward.transformation == "rotated by 90° clockwise"


def test_many_copies_of_one_file_are_listed_linearly():
    prints = [Fingerprint("same", (4, 4), is_constant=True)] * 300 + [Fingerprint("other", (4, 4), is_constant=True)]
    pairs = match_fingerprints(prints)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, index) for index in range(1, 300)]
    assert group_pairs(pairs) == [list(range(300))]


def test_constant_images_are_compared_byte_for_byte(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, value in zip(paths, (0, 0, 9), strict=True):
        Image.new("L", (64, 64), value).save(path)
    assert [(pair.first, pair.second, pair.kind) for pair in find_duplicates(paths, 1)] == [(0, 1, "exact")]


def test_groups_are_transitive():
    pairs = [DuplicatePair(a, b, "exact", "none", 1.0) for a, b in ((4, 7), (1, 2), (2, 9), (7, 8), (0, 9))]
    assert group_pairs(pairs) == [[0, 1, 2, 9], [4, 7, 8]]
    assert group_pairs([]) == []


@pytest.mark.parametrize("number_of_images", [0, 1])
def test_nothing_to_compare(number_of_images, slices):
    assert find_duplicates(slices[:number_of_images], 1) == []


def test_unreadable_images_are_all_named(slices, tmp_path):
    truncated, empty, text = tmp_path / "truncated.png", tmp_path / "empty.png", tmp_path / "text.jpg"
    truncated.write_bytes(slices[0].read_bytes()[:1500])
    empty.touch()
    text.write_text("no image")
    with pytest.raises(ValueError, match="3 image") as error:
        near_duplicate_groups([slices[0], truncated, empty, text], 1)
    assert all(path.name in str(error.value) for path in (truncated, empty, text))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        find_duplicates([tmp_path / "missing.png"], 1)


def test_kinds_and_transformations_are_complete():
    assert len(TRANSFORMATIONS) == len(set(TRANSFORMATIONS)) == N_VARIANTS
    assert {kind for _, _, _, kind, _ in COPIES.values()} | {"exact"} == set(KINDS)


@pytest.mark.parametrize("number", range(N_VARIANTS))
def test_variants_are_undone_by_their_inverse(number):
    picture = np.arange(16).reshape(1, 4, 4)
    assert (variant(variant(picture, number), inverse_variant(number)) == picture).all()


def test_variants_differ():
    picture = np.arange(16).reshape(4, 4)
    assert len({variant(picture, number).tobytes() for number in range(N_VARIANTS)}) == N_VARIANTS


def synthetic_pictures(number, seed=0):
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=(number, 2, COARSE, COARSE)), (0, 0, 2, 2))
    return np.clip(smooth / smooth.std() * 32, -127, 127).astype(np.int8)


@pytest.mark.slow
def test_the_index_finds_copies_among_many():
    pictures = synthetic_pictures(1500)
    originals, variants = np.arange(100), np.arange(100) % N_VARIANTS
    copies = np.stack([variant(pictures[i], g) for i, g in zip(originals, variants, strict=True)])
    noisy = np.clip(copies + np.random.default_rng(1).normal(0, 8, copies.shape), -127, 127).astype(np.int8)
    candidates = find_candidates(np.concatenate([pictures, noisy]))
    found = {tuple(row) for row in candidates.tolist()}
    assert {(i, 1500 + i, int(g)) for i, g in zip(originals, variants, strict=True)} <= found
    assert len(found) == len(candidates) < 400  # hardly anything else
    assert (candidates[:, 0] < candidates[:, 1]).all()


@pytest.mark.slow
def test_the_index_is_deterministic():
    pictures = np.repeat(synthetic_pictures(200), 2, axis=0)
    assert (find_candidates(pictures) == find_candidates(pictures)).all()


@pytest.mark.slow
def test_the_index_copes_with_crowds():
    """Many copies of one image fill whole leaves; all of them end up in one group nevertheless."""
    pictures = np.concatenate([synthetic_pictures(300), np.repeat(synthetic_pictures(1, seed=5), 400, axis=0)])
    candidates = find_candidates(pictures)
    pairs = [DuplicatePair(int(a), int(b), "exact", "none", 1.0) for a, b, g in candidates if g == 0]
    assert list(range(300, 700)) in group_pairs(pairs)
    assert len(candidates) < 100_000  # not 400 * 399 / 2 times the variants


def test_alignment_recovers_a_crop(slices):
    """The check finds shift and scale, where the pictures as they are do not agree."""
    with Image.open(slices[7]) as image:
        views = [np.asarray(view, np.float32) for view in (image, image.crop((6, 2, 154, 156)))]
    described = [describe(GreyImage(view, view.shape, False)) for view in views]
    # the frame in the place of the head too, whose box would find the crop by itself
    fine, coarse = ([pictures[number][[FRAME, FRAME]] for pictures in described] for number in (0, 1))
    result = check_candidates(fine, coarse, np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert (result.scores > COPY_SCORE).all()
    assert result.frames[0] == pytest.approx(np.corrcoef(fine[0][0].ravel(), fine[1][0].ravel())[0, 1], abs=1e-3)
    assert result.frames[0] < 0.8
    assert result.frames[2] == pytest.approx(1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
def test_images_of_every_mode_are_read(mode, tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    path = tmp_path / ("image.tif" if mode == "F" else "image.png")
    image.save(path)
    grey = read_grey(path)
    assert grey.size == (64, 48)
    assert grey.pixels.shape == (48, 64)
    assert grey.pixels.dtype == np.float32
    assert not grey.is_constant
    assert grey.pixels[:, -8:].mean() > 2 * grey.pixels[:, :24].mean()


def test_jpeg_images_are_decoded_at_reduced_size(tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(np.tile(np.linspace(0, 255, 1024).astype(np.uint8), (800, 1))).save(path)
    grey = read_grey(path)
    assert grey.size == (1024, 800)
    assert MIN_DECODED <= min(grey.pixels.shape) < 800


def test_the_ending_need_not_tell_the_format(tmp_path):
    path = tmp_path / "really_png.jpg"
    buffer = io.BytesIO()
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    assert read_grey(path).pixels.sum() == 32 * 255


def test_two_dimensional_nifti(tmp_path):
    path = tmp_path / "slice.nii.gz"
    pixels = np.arange(20 * 30, dtype=np.int16).reshape(20, 30)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))
    grey = read_grey(path)
    assert grey.size == (30, 20)
    assert (grey.pixels == pixels).all()
    assert (read_labels(path) == pixels).all()


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_of_one_slice_is_that_slice(axis, tmp_path):
    array = np.expand_dims(np.arange(30 * 40, dtype=np.int16).reshape(30, 40), axis)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 0.5))
    sitk.WriteImage(image, str(tmp_path / "slice.nii.gz"))
    assert read_grey(tmp_path / "slice.nii.gz").pixels.shape == (30, 40)


def volume(seed):
    patient = draw_patient(np.random.default_rng(seed), seed % 3 + 1)
    levels = np.linspace(-0.45, 0.45, 9)
    return np.stack([draw_slice(np.random.default_rng([seed, i]), patient, 96, x)[0] for i, x in enumerate(levels)])


def test_copies_of_volumes_are_found(tmp_path):
    volumes = [volume(seed) for seed in range(4)]
    volumes.append(volumes[1][:, :, ::-1])
    volumes.append(volumes[2][::-1])
    paths = []
    for number, array in enumerate(volumes):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.0, 5.0))
        paths.append(tmp_path / f"{number}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    pairs = find_duplicates(paths, 1)
    assert [(pair.first, pair.second, pair.transformation) for pair in pairs] == [
        (1, 4, "mirrored left-right"),
        (2, 5, "none"),
    ]


def test_the_central_slice_is_that_of_the_content():
    array = np.zeros((20, 8, 8))
    array[4:9, 2:6, 2:6] = np.arange(5)[:, None, None] + 10
    assert central_slice(array, 0).max() == 12
    assert central_slice(np.zeros((4, 8, 8)), 0).shape == (8, 8)


def test_nan_is_named(tmp_path):
    path = tmp_path / "nan.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 4), np.nan, np.float32)), str(path))
    with pytest.raises(UnreadableImageError, match="NaN"):
        read_grey(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.png", True), ("a.JPG", True), ("a.nii.gz", True), (".a.png", False), ("a.lnk", False), ("Thumbs.db", False)],
)
def test_image_names(name, expected):
    assert is_image(name) is expected


@pytest.mark.slow
@needs_test_data
def test_mirrored_test_images_of_brisc():
    paths = sorted(Path(str(TEST_DATA), "brisc2025", "classification_task").rglob("*.jpg"))
    pairs = find_duplicates(paths, 2)
    kinds = Counter(pair.kind for pair in pairs)
    assert kinds["mirrored"] == 46
    assert kinds["exact"] == 1
    # a copy has its original's class; the byte-identical pair is called axial once and coronal once
    assert all(paths[pair.first].parent.name == paths[pair.second].parent.name for pair in pairs)


@pytest.mark.slow
@needs_test_data
def test_duplicates_across_the_split_of_kaggle():
    paths = sorted(Path(str(TEST_DATA), "kaggle_4class").rglob("*.jpg"))
    found = {frozenset((paths[pair.first].name, paths[pair.second].name)) for pair in find_duplicates(paths, 1)}
    assert {
        frozenset(("Te-no_0398.jpg", "Tr-no_1204.jpg")),
        frozenset(("Te-no_0240.jpg", "Tr-no_1176.jpg")),
        frozenset(("Tr-no_0659.jpg", "Tr-no_0965.jpg")),
    } <= found


@pytest.mark.slow
@needs_test_data
def test_neighbouring_slices_of_figshare_are_no_duplicates():
    folder = Path(str(TEST_DATA), "figshare", "slices")
    paths = [folder / f"{number}.jpg" for number in itertools.chain(range(1, 301), range(2100, 2360))]
    assert find_duplicates(paths, 2) == []
