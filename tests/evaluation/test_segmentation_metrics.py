"""Mask metrics against scikit-learn and scipy, on random blobs and on masks that break careless code."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.ndimage import binary_dilation, gaussian_filter, generate_binary_structure
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist, directed_hausdorff
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from braintum.evaluation.metrics.lesions import _dilated
from braintum.evaluation.metrics.segmentation_metrics import mask_metrics

SPACING = {2: (0.7, 1.9), 3: (5.0, 0.9, 0.45)}


def masks(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random blobs, and masks at which surfaces, counts or components may go wrong."""
    empty = np.zeros(shape, dtype=bool)
    one, corner, border, ring = (empty.copy() for _ in range(4))
    one[tuple(length // 2 for length in shape)] = True
    corner[(0,) * len(shape)] = True
    border[..., -3:] = True
    ring[...] = True
    ring[(slice(1, -1),) * len(shape)] = False
    blobs = [gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5) for seed in range(3)]
    return {
        "empty": empty,
        "full": ~empty,
        "one voxel": one,
        "corner": corner,
        "border": border,
        "ring": ring,
        "checkerboard": np.indices(shape).sum(0) % 2 == 0,
        **{f"blobs {seed}": blob > 0.4 * blob.std() for seed, blob in enumerate(blobs)},
    }


MASKS = {2: masks((13, 10)), 3: masks((5, 9, 8))}
PAIRS = [(ndim, *pair) for ndim in MASKS for pair in itertools.product(MASKS[ndim], repeat=2)]


def surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """(N, axes) coordinates of the voxels that have a face in common with the background or with the outside."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(padded)
    for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
        inner &= np.roll(padded, step, axis)
    return (np.argwhere(padded & ~inner) - 1) * np.array(spacing)


def surface_metrics(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """By the distances between all pairs of surface voxels, in double precision."""
    if not reference.any() or not prediction.any():
        return {"HD": math.nan, "HD95": math.nan, "ASSD": math.nan}
    true, predicted = surface(reference, spacing), surface(prediction, spacing)
    distances = cdist(true, predicted)
    forth, back = distances.min(0), distances.min(1)
    return {
        "HD": max(directed_hausdorff(true, predicted)[0], directed_hausdorff(predicted, true)[0]),
        "HD95": max(np.quantile(forth, 0.95), np.quantile(back, 0.95)),
        "ASSD": (forth.sum() + back.sum()) / (len(forth) + len(back)),
    }


def lesions(mask: np.ndarray, reach: tuple[int, ...]) -> list[set[tuple[int, ...]]]:
    """Voxels of each lesion: a graph whose edges join voxels that are at most ``reach`` apart along every axis."""
    voxels = np.argwhere(mask)
    if not len(voxels):
        return []
    number, labels = connected_components(cdist(voxels / reach, voxels / reach, "chebyshev") <= 1, directed=False)
    return [{tuple(voxel) for voxel in voxels[labels == label].tolist()} for label in range(number)]


def lesion_counts(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """By sets of voxels, for spacings at which dilation by 3 mm is a box."""
    steps = np.floor(np.divide(3, spacing)).astype(int)
    true, predicted = lesions(reference, tuple(2 * steps + 1)), lesions(prediction, (1,) * len(steps))
    near = [
        [other for other in predicted if any((np.abs(np.subtract(a, b)) <= steps).all() for a in lesion for b in other)]
        for lesion in true
    ]
    joined = [set().union(*others) for others in near]
    found = [len(a & b) >= 0.1 * len(a | b) for a, b in zip(true, joined, strict=True)]
    matched = [other for others, is_found in zip(near, found, strict=True) if is_found for other in others]
    untouched = [other for other in predicted if not any(other in others for others in near)]
    scores = [2 * len(a & b) / (len(a) + len(b)) for a, b in zip(true, joined, strict=True)] + [0] * len(untouched)
    return {
        "n_lesions_ref": len(true),
        "n_lesions_found": sum(found),
        "n_lesions_pred": len(predicted),
        "n_lesions_false": sum(other not in matched for other in predicted),
        "lesion_Dice": float(np.mean(scores)) if scores else math.nan,
    }


def overlap_metrics(reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """By scikit-learn; the masks may have any shape."""
    true, predicted = reference.ravel(), prediction.ravel()
    iou = jaccard_score(true, predicted) if true.any() or predicted.any() else math.nan  # takes no NaN for 0 / 0
    return {
        "Dice": f1_score(true, predicted, zero_division=np.nan),
        "IoU": iou,
        "Jaccard_distance": 1 - iou,
        "precision": precision_score(true, predicted, zero_division=np.nan),
        "recall": recall_score(true, predicted, zero_division=np.nan),
        "specificity": recall_score(~true, ~predicted, zero_division=np.nan),
        "accuracy": accuracy_score(true, predicted),
    }


def assert_equal(metrics: dict[str, float], expected: dict[str, float]) -> None:
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("ndim", "reference", "prediction"), PAIRS)
def test_against_second_libraries(ndim: int, reference: str, prediction: str) -> None:
    true, predicted, spacing = MASKS[ndim][reference], MASKS[ndim][prediction], SPACING[ndim]
    metrics = mask_metrics(true, predicted, spacing)
    assert_equal(metrics, overlap_metrics(true, predicted))
    assert_equal(metrics, surface_metrics(true, predicted, spacing))
    assert_equal(metrics, lesion_counts(true, predicted, spacing))
    assert {type(value) for value in metrics.values()} <= {int, float}


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two masks of one small shape, and a spacing."""
    shape = draw(st_numpy.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * len(shape)))
    return draw(st_numpy.arrays(bool, shape)), draw(st_numpy.arrays(bool, shape)), spacing


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_any_masks(case: tuple[np.ndarray, np.ndarray, tuple[float, ...]]) -> None:
    metrics = mask_metrics(*case)
    assert_equal(metrics, overlap_metrics(*case[:2]))
    assert_equal(metrics, surface_metrics(*case))
    if case[0].ndim == 2:
        assert_equal(metrics, lesion_counts(*case))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slice_is_a_2d_image(axis: int) -> None:
    true, predicted = MASKS[2]["blobs 0"], MASKS[2]["blobs 1"]
    spacing = list(SPACING[2])
    spacing.insert(axis, 1898.1)
    flat = mask_metrics(true, predicted, SPACING[2])
    assert mask_metrics(np.expand_dims(true, axis), np.expand_dims(predicted, axis), spacing) == flat


def test_volume_error() -> None:
    true, predicted = np.zeros((2, 3, 4, 5), dtype=bool)[:2]
    true[0, 0, :4] = True
    predicted[1, 1, :3] = True
    metrics = mask_metrics(true, predicted, (5, 0.5, 2))
    assert metrics["relative_volume_error"] == -0.25 and metrics["absolute_volume_error"] == 5
    assert mask_metrics(predicted, true, (5, 0.5, 2))["absolute_volume_error"] == 5
    healthy = mask_metrics(true & False, predicted, (5, 0.5, 2))
    assert math.isnan(healthy["relative_volume_error"]) and healthy["absolute_volume_error"] == 15
    assert mask_metrics(true[0], predicted[1], (0.5, 2))["absolute_volume_error"] == 1


@pytest.mark.parametrize(
    ("reference", "prediction", "counts", "rates"),
    [
        ("##.......#.#", "#..#........", (2, 1, 2, 0), (1 / 2, 1, 2 / 3, 1 / 4)),  # parts that are close are one lesion
        ("#........#", "##########", (2, 2, 1, 0), (1, 1, 1, 2 / 11)),
        ("#.........#", "###########", (2, 0, 1, 1), (0, 0, 0, 1 / 6)),  # one blob over everything
        ("####......", "#..#.....#", (1, 1, 3, 1), (1, 2 / 3, 4 / 5, 1 / 3)),
        ("#........#", "....##....", (2, 0, 1, 1), (0, 0, 0, 0)),
        ("..........", "...##..#..", (0, 0, 2, 2), (math.nan, 0, 0, 0)),
        ("#.........", "..........", (1, 0, 0, 0), (0, math.nan, 0, 0)),
        ("..........", "..........", (0, 0, 0, 0), (math.nan,) * 4),
    ],
)
def test_lesion_rates(reference: str, prediction: str, counts: tuple[int, ...], rates: tuple[float, ...]) -> None:
    true, predicted = (np.array([[pixel == "#" for pixel in row]] * 2) for row in (reference, prediction))
    metrics = mask_metrics(true, predicted, (1, 1))
    names = ("n_lesions_ref", "n_lesions_found", "n_lesions_pred", "n_lesions_false")
    assert tuple(metrics[name] for name in names) == counts
    names = ("lesion_recall", "lesion_precision", "lesion_F1", "lesion_Dice")
    assert tuple(metrics[name] for name in names) == pytest.approx(rates, nan_ok=True)


def test_dilation_is_that_of_brats() -> None:
    mask = np.random.default_rng(0).random((16, 17, 18)) > 0.998
    assert mask.any()
    expected = binary_dilation(mask, generate_binary_structure(3, 2), iterations=3)
    np.testing.assert_array_equal(_dilated(mask, (1.0, 1.0, 1.0)), expected)
    np.testing.assert_array_equal(_dilated(mask, (3.5, 4.0, 9.0)), mask)  # thick slices: nothing is within 3 mm


def test_blob_of_twenty_times_the_volume_finds_nothing() -> None:
    true, predicted = np.zeros((2, 20, 20, 20), dtype=bool)
    true[8:11, 8:11, 8:11] = True
    predicted[5:14, 5:14, 5:12] = True  # 567 voxels instead of 27
    metrics = mask_metrics(true, predicted, (1, 1, 1))
    assert metrics["lesion_F1"] == 0 and metrics["n_lesions_false"] == 1
    assert metrics["lesion_Dice"] == pytest.approx(2 * 27 / (27 + 567))


@pytest.mark.parametrize("ndim", [2, 3])
def test_ignored_voxels_count_for_nothing(ndim: int) -> None:
    true, predicted, ignore = (MASKS[ndim][f"blobs {seed}"] for seed in range(3))
    metrics = mask_metrics(true, predicted, SPACING[ndim], ignore)
    assert_equal(metrics, overlap_metrics(true[~ignore], predicted[~ignore]))
    assert_equal(metrics, surface_metrics(true & ~ignore, predicted & ~ignore, SPACING[ndim]))
    assert_equal(metrics, lesion_counts(true & ~ignore, predicted & ~ignore, SPACING[ndim]))
    assert metrics["TP"] + metrics["FP"] + metrics["FN"] + metrics["TN"] == np.sum(~ignore)
    assert mask_metrics(true ^ ignore, predicted | ignore, SPACING[ndim], ignore) == metrics
    assert mask_metrics(true, predicted, SPACING[ndim]) != metrics


def test_everything_ignored() -> None:
    mask = MASKS[2]["blobs 0"]
    metrics = mask_metrics(mask, mask, (1, 1), ~(mask & False))
    assert all(math.isnan(metrics[name]) for name in ("Dice", "accuracy", "specificity", "HD", "lesion_F1"))
    assert all(metrics[name] == 0 for name in ("TP", "TN", "FP", "FN", "n_ref", "n_lesions_ref"))


@pytest.mark.parametrize(
    ("shape", "dtype", "spacing", "message"),
    [
        ((4, 5), bool, (1, 1), r"bool arrays of one shape in 2-D or 3-D, not bool \(4, 4\), bool \(4, 5\)"),
        ((4, 4), np.uint8, (1, 1), "bool arrays"),
        ((4, 4), bool, (1, 1, 1), "spacing has to be 2 positive numbers"),
        ((4, 4), bool, (1, 0), "spacing has to be 2 positive numbers"),
        ((4, 4), bool, (1, math.nan), "spacing has to be 2 positive numbers"),
    ],
)
def test_wrong_arrays(shape: tuple[int, ...], dtype: type, spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_metrics(np.zeros((4, 4), dtype=bool), np.zeros(shape, dtype=dtype), spacing)


def test_wrong_number_of_axes() -> None:
    line = np.ones(4, dtype=bool)
    with pytest.raises(ValueError, match="2-D or 3-D"):
        mask_metrics(line, line, (1,))
