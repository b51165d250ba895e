"""Slices of one size: crop to the head, resampling, and back to the grid of the file."""

from typing import Any

import numpy as np
import pytest
from nnunet_runs import plan_and_preprocess, write_dataset
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.planner.preprocessing.normalization import PercentileRescaleTo01Normalization
from braintum.planner.preprocessing.whole_slices import head_box, resized, slice_edge

LABELS = {"background": 0, "tumour": 1}


def head(shape: tuple[int, int], box: tuple[int, int, int, int], seed: int = 0) -> np.ndarray:
    """A bright ellipse in a box on the noise of a JPEG background, with letters in a corner; (1, 1, Y, X)."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 6, shape).astype(np.float32)
    top, bottom, left, right = box
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside = ((y - (top + bottom - 1) / 2) / ((bottom - top) / 2)) ** 2
    inside = inside + ((x - (left + right - 1) / 2) / ((right - left) / 2)) ** 2
    image[inside <= 1] = 120 + random.normal(0, 20, int((inside <= 1).sum()))
    image[2:4, 2:12] = 255  # a caption
    return image[None, None]


@pytest.mark.parametrize("shape", [(200, 200), (512, 400), (630, 1200)])
def test_box_is_that_of_the_head(shape: tuple[int, int]) -> None:
    box = shape[0] // 8, shape[0] * 7 // 8, shape[1] // 4, shape[1] * 2 // 3
    found = head_box(head(shape, box))
    assert found[0] == [0, 1]
    tolerance = 0.03 * max(shape)
    np.testing.assert_allclose(np.ravel(found[1:]), box, atol=tolerance)
    brighter = head_box(300 * head(shape, box) - 40)  # grey values have no unit
    np.testing.assert_allclose(np.ravel(brighter[1:]), np.ravel(found[1:]), atol=2)


def test_image_without_a_head_stays_whole() -> None:
    assert head_box(np.zeros((1, 3, 40, 50), np.float32)) == [[0, 3], [0, 40], [0, 50]]


def test_volume_is_cut_to_all_of_its_slices() -> None:
    volume = np.concatenate([head((100, 100), (20, 60, 20, 60)), head((100, 100), (40, 90, 30, 80))], 1)
    (_, rows, columns) = head_box(volume)
    assert rows[0] <= 21 and rows[1] >= 89 and columns[0] <= 21 and columns[1] >= 79


def test_labels_keep_their_values_and_images_their_mean() -> None:
    labels = np.zeros((1, 1, 64, 64), np.int16)
    labels[..., 10:30, 20:50] = 300
    assert set(np.unique(resized(labels, (25, 31), True))) == {0, 300}
    image = np.random.default_rng(0).normal(5, 1, (2, 1, 64, 64)).astype(np.float32)
    small = resized(image, (16, 16), False)
    assert small.shape == (2, 1, 16, 16) and small.std() < 0.5 * image.std()  # no aliasing of noise
    assert small.mean() == pytest.approx(image.mean(), abs=0.02)


@pytest.mark.parametrize("entry", [0, -3, 1.5, True, "192"])
def test_edge_that_is_none(entry: Any) -> None:
    with pytest.raises(ValueError, match="slice_edge.*whole number of pixels"):
        slice_edge({"slice_edge": entry, "patch_size": [192, 192]})
    with pytest.raises(ValueError, match="2-D configurations"):
        slice_edge({"slice_edge": 192, "patch_size": [64, 64, 64]})
    assert slice_edge({"patch_size": [64, 64]}) is None


def test_8_bit_copies_are_normalised_like_their_originals() -> None:
    original = np.random.default_rng(0).gamma(2, 400, (1, 80, 80)).astype(np.float32)
    original[0, 0, :3] = 30000  # what follows a single bright voxel loses all contrast
    low, high = np.percentile(original, (0, 99.9))
    copy = np.clip((original - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    scheme = PercentileRescaleTo01Normalization(use_mask_for_norm=False, intensityproperties={})
    first, second = scheme.run(original), scheme.run(copy)
    assert first.min() == 0 and first.max() == 1
    np.testing.assert_allclose(first, second, atol=0.02)
    assert not scheme.run(np.full((1, 4, 4), 7.0)).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planner", "edge", "batch_size", "crop"),
    [
        ("BrainTumPlannerPretrained", 192, 16, "cropped to the head"),
        ("BrainTumPlannerResidualUNet", 256, 32, "not cropped"),
    ],
)
def test_plan_preprocessing_and_the_way_back(
    nnunet_folders: Any, planner: str, edge: int, batch_size: int, crop: str
) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, shape=(48, 72))
    name = plan_and_preprocess(7, planner=planner)
    folder = nnunet_folders.preprocessed / raw.name
    plans = PlansManager(str(folder / f"{name}.json"))
    configuration = plans.get_configuration("2d")
    assert configuration.configuration["slice_edge"] == edge
    assert list(configuration.patch_size) == [edge, edge] and configuration.batch_size == batch_size
    assert f"slices are {crop}" in plans.plans["braintum_decisions"]["2d"]["patch"]
    cases_folder = str(folder / configuration.data_identifier)
    dataset = infer_dataset_class(cases_folder)(cases_folder)
    data, seg, _, properties = dataset.load_case("case_00")
    assert max(data.shape[2:]) == edge and data.shape[1:] == seg.shape[1:]
    assert data[:].min() >= 0 and data[:].max() <= 1
    # a perfect prediction comes back on the file's own grid
    preprocessor = configuration.preprocessor_class(verbose=False)
    for box in ((4, 44, 10, 66), (0, 48, 0, 72)):
        image, truth = head((48, 72), box), np.zeros((1, 1, 48, 72), np.int8)
        truth[..., 15:30, 30:45] = 1
        dataset_json = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "T1ce"}}
        resized_image, labels, properties = preprocessor.run_case_npy(
            image, truth, {"spacing": [999, 1, 1]}, plans, configuration, dataset_json
        )
        if crop == "not cropped":  # the whole slice, whatever it shows
            assert resized_image.shape[1:] == (1, round(48 * edge / 72), edge)
        logits = np.stack([labels[0] == 0, labels[0] == 1]).astype(np.float32) * 20
        back = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, plans.get_label_manager(dataset_json), properties, num_threads_torch=1
        )
        overlap = 2 * (back & truth[0]).sum() / (back.sum() + truth.sum())
        assert back.shape == (1, 48, 72) and overlap > 0.95
