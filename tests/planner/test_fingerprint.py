"""The fingerprint: equal to nnU-Net's where it has to be, and by hand what is ours."""

import json
import types
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nnunet_runs import write_dataset
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from braintum.planner import fingerprint_extractors
from braintum.planner.fingerprint.intensity_fingerprint import PERCENTILES, channel_statistics, summarise_channel
from braintum.planner.fingerprint.tumour_fingerprint import label_values, tumour_statistics
from braintum.planner.fingerprint_cli import fingerprint
from braintum.planner.fingerprint_extractors import BrainTumFingerprintExtractor
from braintum.planner.fingerprint_report import warnings
from braintum.planner.preprocessing.training_files import training_files

DEFAULT_SAMPLES = fingerprint_extractors.NUM_FOREGROUND_SAMPLES
IGNORE = {"background": 0, "tumour": 1, "ignore": 2}


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def extract(dataset_id: int, overwrite: bool = True, num_processes: int = 1) -> dict[str, Any]:
    return BrainTumFingerprintExtractor(dataset_id, num_processes).run(overwrite)


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net draws 100 million voxels from every data set, however small."""
    monkeypatch.setattr(fingerprint_extractors, "NUM_FOREGROUND_SAMPLES", 100_000)


@pytest.fixture
def stock_extractor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """nnU-Net's extractor with threads instead of processes, which take half a minute to start."""
    context = types.SimpleNamespace(Pool=ThreadPool)
    threads = types.SimpleNamespace(get_context=lambda method: context)
    monkeypatch.setattr(fingerprint_extractor, "multiprocessing", threads)

    def make(*arguments: Any) -> Any:
        extractor = fingerprint_extractor.DatasetFingerprintExtractor(*arguments)
        assert extractor.num_foreground_voxels_for_intensitystats == DEFAULT_SAMPLES
        extractor.num_foreground_voxels_for_intensitystats = fingerprint_extractors.NUM_FOREGROUND_SAMPLES
        return extractor

    return make


@pytest.mark.parametrize(
    ("shape", "file_ending", "num_cases"),
    [((32, 40), ".nii.gz", 8), ((9, 24, 32), ".nii.gz", 4), ((32, 32), ".png", 4), ((32, 32), ".png", 2)],
    ids=["2d", "3d", "png", "no-healthy-case"],
)
def test_stock_entries_and_stock_plans_are_equal(
    nnunet_folders: Any,
    stock_extractor: Any,
    shape: tuple[int, ...],
    file_ending: str,
    num_cases: int,
) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, shape=shape, file_ending=file_ending, num_cases=num_cases)
    _surround_with_zeros(raw, file_ending)
    file = nnunet_folders.preprocessed / raw.name / "dataset_fingerprint.json"
    plans_file = file.with_name("nnUNetPlans.json")
    stock_extractor(7, 1).run(True)
    stock = load(file)
    plan_experiments([7])
    stock_plans = load(plans_file)

    extract(7)
    ours = load(file)
    assert ours.pop("braintum")["tumours"]["cases"] == num_cases
    assert ours == stock
    assert stock["median_relative_size_after_cropping"] < 1
    plans_file.unlink()
    plan_experiments([7])
    assert load(plans_file) == stock_plans


def _surround_with_zeros(raw: Path, file_ending: str) -> None:
    """Rows of zeros above every image, with a hole of zero voxels within, so that cropping has something to do."""
    for file in sorted((raw / "imagesTr").glob(f"*{file_ending}")):
        image = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(image)
        array[..., :7, :] = 0
        array[..., 12:14, 12:14] = 0
        cropped = SimpleITK.GetImageFromArray(array)
        cropped.CopyInformation(image)
        SimpleITK.WriteImage(cropped, str(file))


def test_ignored_voxels_are_not_foreground(nnunet_folders: Any, stock_extractor: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, labels=IGNORE, maskless=(0, 1, 3))
    write_dataset(nnunet_folders.raw, 8, labels=IGNORE)
    for case in (0, 1, 3):  # the same masks, drawn as background
        name = f"labelsTr/case_{case:02d}.nii.gz"
        empty = SimpleITK.ReadImage(str(nnunet_folders.raw / "Dataset008_Tiny" / name)) * 0
        SimpleITK.WriteImage(empty, str(nnunet_folders.raw / "Dataset008_Tiny" / name))
    ours, drawn = extract(7), extract(8)
    key = "foreground_intensity_properties_per_channel"
    assert ours[key] == drawn[key]
    assert stock_extractor(7, 1).run(True)[key][0]["mean"] != ours[key]["0"]["mean"]
    tumours = ours["braintum"]["tumours"]
    assert (tumours["cases_without_mask"], tumours["cases_without_foreground"]) == (3, 2)
    assert tumours["share_without_foreground"] == 2 / 5
    assert drawn["braintum"]["tumours"]["cases_without_mask"] == 0


def test_intensities_by_numpy() -> None:
    random = np.random.default_rng(0)
    images = [random.normal(300, 90, (6, 20, 30)).astype(np.float32) for _ in range(3)]
    for image in images:
        image[image < 200] = 0
    found = summarise_channel("T1", {str(i): channel_statistics(image, 10_000) for i, image in enumerate(images)})
    pooled = np.concatenate([image.ravel() for image in images]).astype(np.float64)
    for region, voxels in (("whole_image", pooled), ("nonzero", pooled[pooled != 0])):
        expected = [voxels.mean(), voxels.std(), voxels.min(), voxels.max(), *np.percentile(voxels, PERCENTILES)]
        np.testing.assert_allclose(list(found[region].values()), expected, rtol=1e-5)
    assert found["nonzero_share"] == np.count_nonzero(pooled) / pooled.size
    assert (found["integer"], found["bit_depth"], found["at_type_limit"]) == (False, None, False)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_percentiles_by_counting(dtype: Any) -> None:
    random = np.random.default_rng(0)
    offset = -200 if dtype == np.int16 else 0
    samples = [(random.gamma(2, 5, 100_000).clip(0, 200) + offset).astype(dtype) for _ in range(3)]
    expected = np.percentile(np.concatenate(samples).astype(np.float32), (0.5, 50.0, 99.5)).tolist()
    assert fingerprint_extractors._percentiles_by_counting(samples, (0.5, 50.0, 99.5)) == expected


@pytest.mark.parametrize(
    "samples", [[np.array([1, 2], np.uint8)], [np.array([0.5], np.float32)], [np.array([], np.float32)]]
)
def test_percentiles_that_counting_does_not_give(samples: list[np.ndarray]) -> None:
    assert fingerprint_extractors._percentiles_by_counting(samples, (50.0,)) is None


def test_sampled_percentiles_are_close() -> None:
    image = np.random.default_rng(0).gamma(2, 100, (8, 100, 100)).astype(np.float32)
    found = summarise_channel("T1", {"a": channel_statistics(image, 8_000)})["whole_image"]
    expected = np.percentile(image, PERCENTILES)
    sampled = [value for name, value in found.items() if name.startswith("percentile")]
    np.testing.assert_allclose(sampled, expected, rtol=0.15)
    assert found["max"] == image.max()  # exact, not of the sample


@pytest.mark.parametrize(
    ("values", "bits", "at_limit"),
    [
        ((0, 255), 8, True),
        ((3, 254), 8, False),
        ((0, 4095), 12, True),
        ((0, 700), 10, False),
        ((-1024, 1023), 11, False),
    ],
)
def test_bit_depth(values: tuple[int, int], bits: int, at_limit: bool) -> None:
    image = np.linspace(*values, 400).round().reshape(1, 20, 20).astype(np.float32)
    found = summarise_channel("T1", {"a": channel_statistics(image, 400)})
    assert (found["integer"], found["bit_depth"], found["at_type_limit"]) == (True, bits, at_limit)


def test_skull_stripped_saturated_and_missing() -> None:
    head = np.random.default_rng(0).uniform(1, 90, (4, 20, 20)).astype(np.float32)
    stripped = head.copy()
    stripped[:, [0, -1]] = stripped[:, :, [0, -1]] = 0
    clipped = stripped.clip(0, 60)
    found = summarise_channel(
        "T1",
        {name: channel_statistics(image, 100) for name, image in {"a": stripped, "b": clipped, "c": head * 0}.items()},
    )
    assert (found["skull_stripped"], found["skull_stripped_share"]) == (True, 1)  # the missing one does not count
    assert (found["missing_images"], found["missing_in"]) == (1, ["c"])
    assert found["saturated_images"] == 1
    assert found["largest_saturated_share"] == pytest.approx((clipped == 60).sum() / np.count_nonzero(clipped))
    assert not summarise_channel("T1", {"a": channel_statistics(head, 100)})["skull_stripped"]


def test_tumour_by_hand() -> None:
    mask = np.zeros((5, 10, 12), np.int32)
    mask[1:4, 2:4, 5:9] = 1
    mask[3, 7, 9] = 2
    mask[4, 0, 0] = 3
    tumour = tumour_statistics(mask, (3.0, 0.5, 2.0), ignore_label=3)
    assert tumour.size((1,)) == 24 * 3.0 and tumour.size((1, 2)) == 25 * 3.0 and tumour.size((7,)) == 0
    assert tumour.slices == 3 and tumour.masked
    assert tumour.extent == (9.0, 6 * 0.5, 5 * 2.0)
    flat = tumour_statistics(mask[3:4], (999.0, 0.5, 2.0), ignore_label=None)
    assert flat.size((1,)) == 8.0 and flat.extent == (0, 3.0, 10.0)
    assert not tumour_statistics(np.full((1, 4, 4), 3), (1, 1, 1), ignore_label=3).masked


def test_label_values_of_regions() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert label_values(labels) == {"whole": (1, 2), "core": (2,)}


def test_classes_and_patients(nnunet_folders: Any) -> None:
    write_dataset(nnunet_folders.raw, 7, classless=(4,))
    tumours = extract(7)["braintum"]["tumours"]
    counted = {name: (entry["cases"], entry["patients"]) for name, entry in tumours["classes"].items()}
    assert counted == {"unknown": (1, 1), "meningioma": (3, 3), "glioma": (2, 2), "no_tumor": (2, 2)}
    sizes = {name: entry["foreground"]["size"] for name, entry in tumours["classes"].items()}
    assert sizes["meningioma"]["median"] == 25 * 4 and sizes["glioma"]["max"] == 100 * 4 and sizes["no_tumor"] is None
    assert (tumours["patients"], tumours["share_without_foreground"]) == (8, 2 / 8)


def test_values_that_are_no_label(nnunet_folders: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, num_cases=4, labels=IGNORE, maskless=(3,))
    file = raw / "labelsTr" / "case_00.nii.gz"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)) * 255, str(file))
    entry = extract(7)["braintum"]
    assert entry["undeclared_values"] == [{"file": "case_00.nii.gz", "value": 255, "voxels": 25}]
    (found,) = [warning for warning in warnings(entry) if "no label" in warning]
    assert found.startswith("case_00.nii.gz: 25 voxels have the value 255, which is no label of dataset.json")
    SimpleITK.WriteImage(SimpleITK.Cast(SimpleITK.ReadImage(str(file)), SimpleITK.sitkInt32) * 300, str(file))
    with pytest.raises(ValueError, match=r"case_00.nii.gz: value 76500 in a label map"):
        extract(7)


def test_dataset_json_of_version_1(nnunet_folders: Any) -> None:
    file = write_dataset(nnunet_folders.raw, 7, num_cases=4) / "dataset.json"
    file.write_text(json.dumps({**load(file), "labels": {"0": "background", "1": "tumour"}}))
    with pytest.raises(ValueError, match="dataset.json is of nnU-Net v1"):
        extract(7)


def test_stock_fingerprint_is_replaced_and_ours_is_kept(nnunet_folders: Any, stock_extractor: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, num_cases=4)
    stock_extractor(7, 1).run(True)
    ours = extract(7, overwrite=False)
    assert "braintum" in ours
    for file in raw.glob("labelsTr/*"):
        file.unlink()  # nothing is read again
    assert extract(7, overwrite=False) == ours


@pytest.mark.slow
def test_workers_find_the_same(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(nnunet_folders.raw, 7)
    alone = extract(7)
    monkeypatch.setattr(fingerprint_extractors, "_SECONDS_IN_THIS_PROCESS", 0)
    assert extract(7, num_processes=2) == alone


def test_training_files_are_nnunets(nnunet_folders: Any) -> None:
    raw = write_dataset(nnunet_folders.raw, 7)
    (raw / "imagesTr" / "case_00_0001.nii.gz").write_bytes((raw / "imagesTr" / "case_00_0000.nii.gz").read_bytes())
    (raw / "imagesTr" / "notes.txt").write_text("not an image")
    dataset_json = load(raw / "dataset.json")
    stock = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    ours = training_files(raw, dataset_json)
    assert list(ours) == list(stock) and ours == stock
    assert len(ours["case_00"]["images"]) == 2
    with pytest.raises(FileNotFoundError, match=r"imagesTr holds no image named CASE_0000.png"):
        training_files(raw, {**dataset_json, "file_ending": ".png"})


def test_page_and_file(nnunet_folders: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    raw = write_dataset(nnunet_folders.raw, 7)
    assert fingerprint(["7", "-pl", "BrainTumPlannerLight", "-o", str(tmp_path / "page.json")]) == 0
    page = capsys.readouterr().out
    assert "T1ce: whole numbers, 8 bits in use" in page
    assert "class glioma: 3 cases, 3 patients" in page
    assert "batch 12 because 3 classes need 4 cases each" in page
    assert "patch 32 x 32 because it covers every image" in page
    saved = load(tmp_path / "page.json")
    assert saved["decisions"]["2d"]["batch"] in page
    assert [file.name for file in (nnunet_folders.preprocessed / raw.name).iterdir()] == ["dataset_fingerprint.json"]
    assert fingerprint(["Dataset007_Tiny", "-gpu_memory_target", "4", "-o", str(tmp_path / "page.txt")]) == 0
    assert (tmp_path / "page.txt").read_text(encoding="utf-8").startswith("Dataset007_Tiny\n-----")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7", "-o", "page.pdf"], "page.pdf: the file to save has to end with .json or .txt"),
        (["7", "-pl", "ExperimentPlanner"], "-pl ExperimentPlanner: not one of our planners: BrainTumPlanner"),
        (["12"], "12"),
        (["tiny"], "tiny is neither a data set's number nor a name"),
    ],
)
def test_command_refuses(nnunet_folders: Any, arguments: list[str], message: str) -> None:
    write_dataset(nnunet_folders.raw, 7)
    with pytest.raises(ValueError, match=message):
        fingerprint(arguments)
