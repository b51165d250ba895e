"""Prediction in bulk against nnU-Net's own order of computation."""

import copy
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from tiny_training import TinyDataset, write_images, write_preprocessed
from torch import nn
from trainer_steps import hand_over

from braintum.inference.models.network_copies import shared_copy, use_channels_last, use_group_normalisation
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.predict_folder import predict_folder
from braintum.inference.prediction import bulk_prediction, memory_budget, precision
from braintum.inference.prediction.bulk_prediction import BulkPredictor, BulkSettings, PredictedCase
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import BatchSize, is_out_of_memory, largest_host_batch
from braintum.inference.prediction.precision import PrecisionTrial
from braintum.inference.prediction.window_batches import CaseInProgress, mirror_axes

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def make_predictor(
    dataset: TinyDataset, predictor_class: type = JointPredictor, trainer_name: str = "nnUNetTrainerMultiTask"
) -> Any:
    """With two folds of untrained, but different, weights."""
    weights = []
    for fold in range(2):
        torch.manual_seed(fold)
        trainer = dataset.trainer(trainer_name)
        trainer.initialize()
        for parameter in trainer.network.decoder.parameters():  # so that some foreground is predicted
            nn.init.normal_(parameter, std=0.3)
        weights.append(copy.deepcopy(trainer.network.state_dict()))
    predictor = predictor_class(device=torch.device("cpu"), allow_tqdm=False)
    axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    return hand_over(trainer, predictor, weights, axes)


def images(*shapes: tuple[int, int, int]) -> list[tuple[str, np.ndarray]]:
    random = np.random.default_rng(7)
    return [(f"case_{n}", random.normal(size=(1, *shape)).astype(np.float32)) for n, shape in enumerate(shapes)]


def in_bulk(predictor: Any, cases: list[tuple[str, np.ndarray]], num_threads: int = 1, **options: Any) -> Any:
    return list(BulkPredictor(predictor, len(cases), num_threads, **options).predict(iter(cases)))


def averaged_logits(predictor: Any, image: np.ndarray) -> np.ndarray:
    """nnU-Net's sliding window written down plainly, in double precision."""
    patch_size = tuple(predictor.configuration_manager.patch_size)
    padded, inner = pad_nd_image(torch.from_numpy(image), patch_size, "constant", {"value": 0}, True)
    gaussian: Any = compute_gaussian(patch_size, 1 / 8, 10, device=torch.device("cpu")).double()
    if not predictor.use_gaussian:
        gaussian = torch.ones(patch_size)
    total: Any = 0.0
    for weights in predictor.list_of_parameters:
        predictor.network.load_state_dict(weights)
        predictor.network.eval()
        sums = torch.zeros((predictor.label_manager.num_segmentation_heads, *padded.shape[1:]), dtype=torch.float64)
        counts = torch.zeros(padded.shape[1:], dtype=torch.float64)
        for window in predictor._internal_get_sliding_window_slicers(padded.shape[1:]):
            patch = padded[window][None]
            dimensions = [axis + 2 for axis in range(patch.ndim - 2)] if predictor.use_mirroring else []
            mirrors = [axes for count in range(4) for axes in itertools.combinations(dimensions, count)]
            with torch.inference_mode():
                predictions = [torch.flip(predictor.network(torch.flip(patch, axes)), axes)[0] for axes in mirrors]
            sums[window] += torch.stack(predictions).double().mean(0) * gaussian
            counts[window[1:]] += gaussian
        total = total + sums / counts
    unpadded = (slice(None), *inner[1:])
    return (total / len(predictor.list_of_parameters))[unpadded].numpy()


def assert_equals_stock(predictor: Any, cases: list[tuple[str, np.ndarray]], found: list[PredictedCase]) -> None:
    """To float32's rounding; nnU-Net's own logits are in half precision, coarse where weights of windows are small."""
    assert [case.name for case in found] == [name for name, _ in cases]
    for (_, image), case in zip(cases, found, strict=True):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).float().numpy()
        assert case.logits.shape == logits.shape and case.logits.dtype == np.float32
        largest = np.abs(logits).max()
        assert np.median(np.abs(case.logits - logits)) < 1e-3 * largest
        np.testing.assert_allclose(case.logits, averaged_logits(predictor, image), rtol=1e-4, atol=1e-4 * largest)
        expected = getattr(predictor, "evidence", [])
        assert len(case.evidence) == len(expected)
        for ours, theirs in zip(case.evidence, expected, strict=True):
            # bulk prediction starts with the windows in the middle: what is aggregated does not know an order
            assert ours.weights.shape == theirs.weights.shape
            order, their_order = (np.argsort(evidence.weights[:, 0]) for evidence in (ours, theirs))
            np.testing.assert_allclose(ours.weights[order], theirs.weights[their_order], atol=1e-5)
            np.testing.assert_allclose(ours.probabilities[order], theirs.probabilities[their_order], atol=1e-5)
            assert ours.by_region.keys() == theirs.by_region.keys()
            assert 0 < ours.agreement <= 1 + 1e-6 and ours.agreement == pytest.approx(theirs.agreement, abs=1e-4)
            np.testing.assert_allclose(ours.features, theirs.features, rtol=1e-3, atol=1e-4)
            for name, probabilities in theirs.by_region.items():
                np.testing.assert_allclose(ours.by_region[name][order], probabilities[their_order], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("configuration", "labels", "shapes"),
    [
        ("2d", None, [(1, 32, 32), (1, 50, 40), (1, 20, 70)]),
        ("2d", REGIONS, [(3, 32, 40), (1, 32, 32)]),
        ("3d_fullres", {"background": 0, "oedema": 1, "core": 2}, [(8, 16, 24), (8, 20, 16)]),
    ],
    ids=["slices of several sizes", "regions, volumes by slices", "volumes, several labels"],
)
def test_logits_and_evidence_are_those_of_stock_prediction(
    nnunet_folders: Any, configuration: str, labels: dict | None, shapes: list, num_threads: int
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, configuration, labels=labels)
    if labels is REGIONS:
        dataset = replace(dataset, dataset_json={**dataset.dataset_json, "regions_class_order": [1, 2]})
    predictor = make_predictor(dataset)
    cases = images(*shapes)
    assert_equals_stock(predictor, cases, in_bulk(predictor, cases, num_threads))
    assert bool(predictor.region_channels) == (labels is not None)


def test_models_without_classes_and_without_mirrors(nnunet_folders: Any) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d", classes=False)
    predictor = make_predictor(dataset, SegmentationPredictor, "nnUNetTrainer")
    predictor.use_mirroring = False
    predictor.use_gaussian = False
    cases = images((1, 40, 50), (1, 32, 32))
    found = in_bulk(predictor, cases)
    assert_equals_stock(predictor, cases, found)
    assert all(case.evidence == [] for case in found)
    assert in_bulk(predictor, []) == []


@pytest.mark.slow
def test_out_of_memory_costs_no_case(
    nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = make_predictor(write_preprocessed(nnunet_folders.preprocessed, "2d"))
    sizes: list[int] = []

    def with_memory_for(limit: int) -> Callable[..., Any]:
        def forward(self: Any, network: Any, passes: Any, bfloat16: bool, run: Any = BulkPredictor._forward) -> Any:
            sizes.append(len(passes))
            if len(passes) > limit:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return run(self, network, passes, bfloat16)

        return forward

    cases = images((1, 40, 50), (1, 32, 32), (1, 32, 33))
    with monkeypatch.context() as patched:
        patched.setattr(BulkPredictor, "_forward", with_memory_for(2))
        found = in_bulk(predictor, cases)
    assert max(sizes) > 2 and sizes[-1] <= 2
    assert "out of memory with a batch of" in caplog.text
    assert_equals_stock(predictor, cases, found)
    monkeypatch.setattr(BulkPredictor, "_forward", with_memory_for(0))
    with pytest.raises(RuntimeError, match="can't allocate"):
        in_bulk(predictor, cases)


def test_a_failing_network_is_no_lack_of_memory(nnunet_folders: Any) -> None:
    predictor = make_predictor(write_preprocessed(nnunet_folders.preprocessed, "2d"))
    with pytest.raises(RuntimeError, match="expected input"):
        in_bulk(predictor, [("two channels", np.zeros((2, 1, 32, 32), np.float32))])


@pytest.mark.slow
def test_bfloat16_on_request_and_after_a_trial(
    nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = make_predictor(write_preprocessed(nnunet_folders.preprocessed, "2d"))
    cases = images(*[(1, 32, 32)] * 12)
    exact = in_bulk(predictor, cases, precision="float32")
    forced = in_bulk(predictor, cases, precision="bfloat16")

    def difference(found: list[PredictedCase]) -> list[float]:
        return [
            float(np.abs(a.logits - b.logits).max() / np.abs(b.logits).max()) for a, b in zip(found, exact, strict=True)
        ]

    assert all(1e-4 < value < 0.1 for value in difference(forced))

    monkeypatch.setattr(bulk_prediction, "cpu_computes_bfloat16", lambda: True)
    monkeypatch.setattr(bulk_prediction, "SETTINGS", BulkSettings(voxels_worth_a_trial=1))
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision, "LIMITS", precision.AgreementLimits(mean_dice=1.0, equal_voxels=1.0))
    assert max(difference(in_bulk(predictor, cases))) < 1e-5
    assert "float32 it is: against float32, the first" in caplog.text
    monkeypatch.setattr(precision, "LIMITS", precision.AgreementLimits(0.0, 0.0, 1.0))
    accepted = difference(in_bulk(predictor, cases))
    assert "bfloat16 it is: against float32, the first" in caplog.text
    assert accepted[-1] > 1e-4  # once decided
    monkeypatch.setattr(bulk_prediction, "cpu_computes_bfloat16", lambda: False)
    assert max(difference(in_bulk(predictor, cases))) < 1e-5


def test_bfloat16_is_for_cpus() -> None:
    predictor = nnUNetPredictor(device=torch.device("meta"), allow_tqdm=False)
    with pytest.raises(ValueError, match="bfloat16 is a choice for CPUs"):
        BulkPredictor(predictor, 1, 1, "bfloat16")


def test_trial_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    background = torch.zeros(10, 10)
    tumour = torch.full((10, 10), -1.0)
    tumour[:2] = 1  # 20 voxels
    smaller = tumour.clone()
    smaller[0, 0] = -1  # 19 of them: Dice 38/39, 99 of 100 voxels
    logits, candidate = torch.stack([background, tumour]), torch.stack([background, smaller])
    found = precision.found_labels(candidate, has_regions=False)
    assert found.shape == (1, 10, 10) and int(found.sum()) == 19
    assert precision.found_labels(candidate, has_regions=True).sum((1, 2)).tolist() == [0, 19]

    def outcome(*pairs: tuple[torch.Tensor, torch.Tensor], classes: float = 0.0) -> bool | None:
        trial = PrecisionTrial(windows=2, most_windows=3, has_regions=False)
        for first, second in pairs:
            trial.compare(first, second, torch.tensor([0.5, 0.5]), torch.tensor([0.5 + classes, 0.5 - classes]))
        return trial.accepted

    empty = torch.stack([background, torch.full((10, 10), -1.0)])
    assert outcome((logits, logits)) is None
    assert outcome((logits, logits), (logits, logits)) is True
    assert outcome((logits, logits), (logits, candidate)) is False
    assert f"at least {(1 + 38 / 39) / 2 - 1.645 / 39 / 2:.5f}" in caplog.text  # the standard error of 1 and 1 - 1/39
    assert outcome((logits, logits), (logits, logits), classes=0.05) is False
    assert outcome((empty, empty), (empty, empty), (logits, logits)) is False  # too little to judge by
    assert outcome((logits, logits), (empty, empty), (logits, logits)) is True


def test_mirrors_follow_nnunet() -> None:
    assert mirror_axes(None) == [()]
    assert mirror_axes((0, 1)) == [(), (0,), (1,), (0, 1)]
    assert len(mirror_axes((0, 1, 2))) == 8


def test_windows_in_the_middle_come_first(nnunet_folders: Any) -> None:
    predictor = make_predictor(write_preprocessed(nnunet_folders.preprocessed, "2d"))
    case = CaseInProgress(predictor, "volume", images((5, 32, 32))[0][1], 1, torch.device("cpu"))
    assert [window[1] for window in case.windows] == [2, 1, 3, 0, 4]
    assert [(item.window, item.mirror) for item in case.passes()][:5] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_group_norms_equal_instance_norms() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(6, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tracked = nn.InstanceNorm2d(6, track_running_stats=True)
    network = nn.Module()
    network.first, network.again = nn.Sequential(nn.Conv2d(2, 6, 3), norm), nn.Sequential(norm)
    network.plain, network.tracked = nn.InstanceNorm3d(6), tracked
    x = torch.randn(2, 2, 12, 12)
    expected, keys = network.first(x), set(network.state_dict())
    use_group_normalisation(network)
    assert isinstance(network.first[1], nn.GroupNorm) and network.first[1] is network.again[0]
    assert network.first[1].weight is norm.weight
    assert network.tracked is tracked
    assert set(network.state_dict()) == keys
    torch.testing.assert_close(network.first(x), expected, atol=1e-5, rtol=1e-5)
    volume = torch.randn(1, 6, 4, 5, 6)
    torch.testing.assert_close(network.plain(volume), nn.InstanceNorm3d(6)(volume), atol=1e-5, rtol=1e-5)
    for count in (1, 2):  # another operation for one image in bfloat16
        half = network.first[0](x[:count]).bfloat16()
        torch.testing.assert_close(network.first[1](half), norm(half.float()).bfloat16(), atol=0.02, rtol=0.02)

    twin = shared_copy(network)
    assert twin.first is not network.first and twin.first[0].weight is network.first[0].weight


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="channels-last is for oneDNN")
@pytest.mark.parametrize(
    ("convolution", "transposed", "shape", "memory_format"),
    [
        (nn.Conv2d, nn.ConvTranspose2d, (2, 3, 8, 10), torch.channels_last),
        (nn.Conv3d, nn.ConvTranspose3d, (1, 3, 8, 10, 6), torch.channels_last_3d),
    ],
)
def test_channels_last_changes_the_layout_alone(
    convolution: Any, transposed: Any, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(convolution(3, 5, 3, padding=1), nn.LeakyReLU(), transposed(5, 4, 2, stride=2))
    network.register_parameter("position", nn.Parameter(torch.zeros(1, 2, 3, 4)))
    x = torch.randn(shape)
    expected, weights = network(x), {name: value.clone() for name, value in network.state_dict().items()}
    use_channels_last(network)
    found = network(x)
    assert network[0].weight.is_contiguous(memory_format=memory_format)
    assert network[2].weight.is_contiguous(memory_format=memory_format)
    assert network.position.is_contiguous()  # of four dimensions in any network, and no weight of a convolution
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def seconds_of(times: dict[int, float], batch_size: BatchSize) -> Iterator[int]:
    while batch_size.measuring:
        size = batch_size.next()
        batch_size.report(size, times[size] * size)
        yield size


def test_batch_size_is_the_fastest_measured() -> None:
    batch_size = BatchSize(start=4, largest=8, passes=1000)
    assert list(seconds_of({2: 5.0, 4: 4.0, 8: 3.0}, batch_size)) == [2, 4, 8] * 3
    assert batch_size.next() == 8
    unchanged = BatchSize(start=4, largest=64, passes=10_000)
    assert set(seconds_of({2: 3.95, 4: 4.0, 8: 3.9, 16: 9.0}, unchanged)) == {2, 4, 8, 16}
    assert unchanged.next() == 4  # nothing is worth it
    assert unchanged.back_off(4) == 2 and unchanged.next() == 2
    assert unchanged.back_off(1) == 1
    few = BatchSize(start=4, largest=8, passes=50)
    assert not few.measuring and few.next() == 4
    assert BatchSize(start=4, largest=3, passes=10_000).next() == 3
    measured = BatchSize(start=4, largest=8, passes=1000)
    measured.back_off(8)
    assert not measured.measuring and measured.next() == 4


def test_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit, usage = (tmp_path / name for name in ("meminfo", "limit", "usage"))
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:    40 kB\n")
    assert memory_budget._read_available(meminfo) == 40 * 1024
    usage.write_text("1000\n")
    monkeypatch.setattr(memory_budget, "_CGROUP_FILES", ((limit, usage),))
    without = memory_budget.available_host_memory()
    limit.write_text("max\n")
    assert memory_budget._read_bytes(limit) is None
    limit.write_text("11000\n")
    assert memory_budget.available_host_memory() == 10_000 < without
    assert largest_host_batch(1000) == 5
    assert largest_host_batch(1000, lanes=2) == 2
    assert largest_host_batch(10**9) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=["Python", "CUDA", "CPU", "shapes", "other"],
)
def test_out_of_memory_is_told_apart(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def read(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in folder.glob("*.nii.gz")}


@pytest.mark.slow
def test_folders_with_faults_and_a_class_model(nnunet_folders: Any, tmp_path: Path) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    dataset.plans["foreground_intensity_properties_per_channel"]["0"] = {}
    predictor = make_predictor(dataset)
    folder = write_images(tmp_path / "images", (40, 36), num_cases=7)
    (folder / "case_2_0000.nii.gz").write_bytes(b"broken")
    masks_only = make_predictor(dataset, SegmentationPredictor, "nnUNetTrainer")
    for name, options in {"joint": {}, "two models": {"class_predictor": predictor}}.items():
        expected, found = tmp_path / f"{name} exact", tmp_path / name
        chosen = predictor if name == "joint" else masks_only
        predict_folder(chosen, folder, expected, show_progress=False, **options)
        outcome = predict_folder(chosen, folder, found, show_progress=False, exact=False, **options)
        assert sorted(outcome.predicted) == [f"case_{number}" for number in (0, 1, 3, 4, 5, 6)]
        assert list(outcome.failed) == ["case_2"] and outcome.listed == 6
        masks, expected_masks = read(found), read(expected)
        assert masks.keys() == expected_masks.keys() and len(masks) == 6
        assert any(mask.any() for mask in masks.values())
        for file, mask in expected_masks.items():
            assert (masks[file] == mask).mean() > 0.999
        for file in (expected / "classes").iterdir():
            result, other = (json.loads((target / "classes" / file.name).read_text()) for target in (expected, found))
            assert result.keys() == other.keys()
            for key in ("probabilities", "mirror_spread", "fold_spread"):
                assert other[key] == pytest.approx(result[key], abs=1e-5)
            assert other["tumour_evidence"] == pytest.approx(result["tumour_evidence"], abs=1e-5)
