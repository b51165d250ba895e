"""Slices drawn from volumes in 2-D training: kinds and shares by hand, the rest against nnU-Net's own loader."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_runs import make_trainer, plan_and_preprocess, write_dataset
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from braintum.trainers.data.slice_sampling import SliceSampling, SliceSamplingLoader, draw_slice, kinds_of_slices
from braintum.trainers.multi_task import nnUNetTrainerMultiTask

ANNOTATED = (-1, 0, 1, 2)
IGNORE = 3


def locations(segmentation: np.ndarray, keys: tuple = (1, 2)) -> dict:
    """As nnU-Net's preprocessing finds them."""
    return DefaultPreprocessor._sample_foreground_locations(segmentation, list(keys))


def volume(tumour: dict[int, dict[int, int]], num_slices: int = 12, edge: int = 8) -> np.ndarray:
    """A segmentation (1, Z, edge, edge): slice → {label: number of its voxels}."""
    segmentation = np.zeros((1, num_slices, edge, edge), np.int16)
    for index, counts in tumour.items():
        values = [label for label, count in counts.items() for _ in range(count)]
        segmentation[0, index].flat[: len(values)] = values
    return segmentation


def shares_of_slices(policy: SliceSampling, class_locations: dict, forced: bool, empty: tuple = ()) -> dict[int, float]:
    np.random.seed(3)
    draws = [
        draw_slice(policy, 12, class_locations, ANNOTATED, forced, lambda index: index in empty)[0] for _ in range(8000)
    ]
    return {index: count / len(draws) for index, count in Counter(draws).items()}


def test_kinds_of_slices() -> None:
    segmentation = volume({5: {1: 3}, 6: {2: 1}})
    tumour, near, elsewhere = kinds_of_slices(12, locations(segmentation), ANNOTATED, neighbour_slices=2)
    assert tumour.tolist() == [5, 6]
    assert near.tolist() == [3, 4, 7, 8]
    assert elsewhere.tolist() == [0, 1, 2, 9, 10, 11]


def test_kinds_of_slices_of_two_tumours_and_at_the_border() -> None:
    kinds = kinds_of_slices(12, locations(volume({0: {1: 1}, 4: {1: 1}})), ANNOTATED, neighbour_slices=1)
    assert [slices.tolist() for slices in kinds] == [[0, 4], [1, 3, 5], [2, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("keys", [(1, 2, ANNOTATED), ((1, 2), (2,), ANNOTATED)], ids=["labels", "regions"])
def test_slices_without_annotation_are_left_out_where_others_have_it(keys: tuple) -> None:
    segmentation = volume({5: {1: 3}})
    segmentation[0, [1, 2, 3, 6]] = IGNORE
    kinds = kinds_of_slices(12, locations(segmentation, keys), ANNOTATED, neighbour_slices=2)
    assert [slices.tolist() for slices in kinds] == [[5], [4, 7], [0, 8, 9, 10, 11]]
    kinds = kinds_of_slices(12, locations(np.full_like(segmentation, IGNORE), keys), ANNOTATED, neighbour_slices=2)
    assert [slices.tolist() for slices in kinds] == [[], [], list(range(12))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tumour", "empty", "expected"),
    [
        # the area of the tumour does not matter; 0.2 / 2 tumour slices, 0.3 / 2 neighbours, 0.5 / 8 others
        (
            {5: {1: 60}, 6: {1: 1}},
            (),
            {5: 0.1, 6: 0.1, 4: 0.15, 7: 0.15} | dict.fromkeys([0, 1, 2, 3, 8, 9, 10, 11], 0.5 / 8),
        ),
        # slices without an image are passed over within their kind
        ({0: {1: 1}}, (2, 3, 4), {0: 0.2, 1: 0.3} | dict.fromkeys(range(5, 12), 0.5 / 7)),
        # no slice elsewhere: its share goes to the others, 0.2 : 0.3
        ({index: {1: 1} for index in range(1, 12, 2)}, (), dict.fromkeys(range(1, 12, 2), 0.4 / 6)
            | dict.fromkeys(range(0, 12, 2), 0.6 / 6)),
        # a healthy volume is drawn evenly
        ({}, (0, 11), dict.fromkeys(range(1, 11), 0.1)),
        ({}, tuple(range(12)), dict.fromkeys(range(12), 1 / 12)),
    ],
    ids=["three kinds", "empty slices", "tumour everywhere", "healthy", "nothing to see"],
)  # fmt: skip
def test_shares_of_slices(tumour: dict, empty: tuple, expected: dict[int, float]) -> None:
    found = shares_of_slices(SliceSampling(0.2, 0.3, 0.5, neighbour_slices=1), locations(volume(tumour)), False, empty)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=0.016)  # over three standard deviations of 8000 draws


@pytest.mark.slow
def test_shares_that_no_kind_is_left_for_fall_back_to_all_slices() -> None:
    everywhere = locations(volume({index: {1: 1} for index in range(12)}))
    assert shares_of_slices(SliceSampling(0, 0, 1), everywhere, False) == pytest.approx(
        dict.fromkeys(range(12), 1 / 12), abs=0.016
    )


def test_forced_foreground_balances_classes_then_slices() -> None:
    class_locations = locations(volume({4: {1: 50}, 5: {1: 1}, 6: {1: 30, 2: 1}}), (1, 2, ANNOTATED))
    # class 1 or 2 with 0.5 each; class 1 on three slices, class 2 on one
    expected = {4: 0.5 / 3, 5: 0.5 / 3, 6: 0.5 / 3 + 0.5}
    assert shares_of_slices(SliceSampling(), class_locations, True) == pytest.approx(expected, abs=0.016)
    shown = {draw_slice(SliceSampling(), 12, class_locations, ANNOTATED, True, lambda index: False) for _ in range(99)}
    assert shown == {(4, 1), (5, 1), (6, 1), (6, 2)}


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (-0.5, 1, 0.5), (0.9, 0, 0)])
def test_wrong_shares_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="at least 0 and to sum to 1"):
        SliceSampling(*shares)


def test_neighbours_have_to_be_somewhere() -> None:
    with pytest.raises(ValueError, match="neighbour_slices has to be at least 1, not 0"):
        SliceSampling(neighbour_slices=0)


class MemoryDataset:
    """Like nnU-Net's data sets; voxels of the image tell their place."""

    def __init__(self, segmentations: dict[str, np.ndarray], keys: tuple) -> None:
        self.identifiers = sorted(segmentations)
        self.segmentations, self.keys = segmentations, keys

    def load_case(self, identifier: str) -> tuple:
        segmentation = self.segmentations[identifier]
        image = np.arange(segmentation.size, dtype=np.float32).reshape(segmentation.shape)
        return image, segmentation, None, {"class_locations": locations(segmentation, self.keys)}


def make_loader(loader: Any, segmentations: dict, patch_size: tuple, keys: tuple = (1, 2), **options: Any) -> Any:
    label_manager = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=ANNOTATED in keys)
    return loader(
        MemoryDataset(segmentations, keys),
        6,
        patch_size,
        patch_size,
        label_manager,
        oversample_foreground_percent=0.33,
        **options,
    )


@pytest.mark.parametrize(
    ("num_slices", "patch_size"), [(1, (6, 6)), (12, (5, 6, 6))], ids=["2-D images", "3-D patches"]
)
@pytest.mark.parametrize("keys", [(1, 2), ((1, 2), (2,), ANNOTATED)], ids=["labels", "regions with ignore"])
def test_other_batches_are_those_of_stock_nnunet(num_slices: int, patch_size: tuple, keys: tuple) -> None:
    segmentations = {"ill": volume({0: {1: 20, 2: 3}}, num_slices), "healthy": volume({}, num_slices)}
    batches = []
    for loader, options in ((nnUNetDataLoader, {}), (SliceSamplingLoader, {"slice_sampling": SliceSampling()})):
        np.random.seed(5)
        made = make_loader(loader, segmentations, patch_size, keys, **options)
        batches.append([next(made) for _ in range(5)])
    for stock, ours in zip(*batches, strict=True):
        assert stock["keys"].tolist() == ours["keys"].tolist()
        assert torch.equal(stock["data"], ours["data"]) and torch.equal(stock["target"], ours["target"])


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(1, 2), (1, 2, ANNOTATED), ((1, 2), (2,), ANNOTATED)])
def test_patches_are_whole_slices_in_the_drawn_shares(keys: tuple) -> None:
    segmentation = volume({5: {1: 60}, 6: {1: 4, 2: 2}})
    policy = SliceSampling(0.2, 0.3, 0.5, neighbour_slices=1)
    loader = make_loader(SliceSamplingLoader, {"a": segmentation}, (6, 6), keys, slice_sampling=policy)
    np.random.seed(1)
    slices, forced_slices = [], []
    for _ in range(300):
        batch = next(loader)
        for position, (data, target) in enumerate(zip(batch["data"], batch["target"], strict=True)):
            inside = target >= 0  # the patch may reach over the border of the slice
            (index,) = {int(value) // 64 for value in data[inside]}  # one slice, and no other
            assert torch.equal(target[inside], torch.from_numpy(segmentation.ravel()[data[inside].int().numpy()]))
            if position < 4:  # round(6 · 0.67): the rest is forced onto foreground
                slices.append(index)
            else:
                forced_slices.append(index)
                assert (target > 0).any()
    found = {index: count / len(slices) for index, count in Counter(slices).items()}
    expected = {5: 0.1, 6: 0.1, 4: 0.15, 7: 0.15} | dict.fromkeys([0, 1, 2, 3, 8, 9, 10, 11], 0.5 / 8)
    assert found == pytest.approx(expected, abs=0.035)  # over three standard deviations of 1200 draws
    assert set(forced_slices) == {5, 6}


def test_constant_slices_of_an_image_are_passed_over() -> None:
    loader = make_loader(SliceSamplingLoader, {"a": volume({})}, (8, 8), slice_sampling=SliceSampling())
    load_case = loader._data._dataset.load_case

    def two_channels(identifier: str) -> tuple:
        image, *rest = load_case(identifier)
        image = np.concatenate([np.zeros_like(image), image])
        image[:, [0, 3]] = -7.5  # as of masked intensities
        return image, *rest

    loader._data._dataset.load_case = two_channels
    np.random.seed(2)
    indices = {int(data[1].max()) // 64 for _ in range(40) for data in next(loader)["data"]}
    assert indices == set(range(12)) - {0, 3}


@pytest.mark.slow
def test_trainer_draws_slices_of_volumes_by_its_policy(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_seed", "4")
    write_dataset(nnunet_folders.raw, 7, shape=(14, 32, 32))
    plans = plan_and_preprocess(7)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # batches from this process

    def batches(policy: SliceSampling | None) -> list[dict]:
        monkeypatch.setattr(nnUNetTrainerMultiTask, "slice_sampling", policy)
        trainer = make_trainer(7, plans)
        trainer.initialize()
        training, validation = trainer.get_dataloaders()
        made = [next(loader) for _ in range(8) for loader in (training, validation)]
        for batch in made:
            batch["shows_tumour"] = (batch["target"][0] > 0).flatten(1).any(1)
            batch["ill"] = trainer.class_labels.of(batch["keys"]) != trainer.class_labels.negative_label
        return made

    def tumour_share(made: list[dict]) -> float:
        ill = torch.cat([batch["ill"] for batch in made])
        return torch.cat([batch["shows_tumour"] for batch in made])[ill].float().mean().item()

    first, again, stock = batches(SliceSampling()), batches(SliceSampling()), batches(None)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["data"], other["data"])
    assert not all(torch.equal(one["data"], other["data"]) for one, other in zip(first, stock, strict=True))
    only_tumour, only_forced = batches(SliceSampling(1, 0, 0)), batches(SliceSampling(0, 0, 1))
    assert tumour_share(only_tumour) > 0.9  # a rotated corner may lose a small tumour
    assert tumour_share(only_forced) < tumour_share(first) < tumour_share(only_tumour)
