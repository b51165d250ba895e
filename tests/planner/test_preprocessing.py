"""Preprocessing: nnU-Net's arrays in nnU-Net's files, and neighbouring slices as channels."""

import dataclasses
import json
import multiprocessing.dummy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import blosc2
import numpy as np
import pytest
import SimpleITK
import torch
from nnunet_runs import make_trainer, write_dataset
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities import utils
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.architectures.input_channels import neighbouring_slices, num_network_channels
from braintum.inference.predict_folder import predict_folder
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.planner.planners import BrainTumPlanner, BrainTumPlanner25D, BrainTumPlannerLight
from braintum.planner.preprocessing.neighbouring_slices import check_neighbours, stack_neighbouring_slices
from braintum.planner.preprocessing.preprocessors import BrainTumPreprocessor


class SmallPlanner25D(BrainTumPlanner25D):
    """The 2.5-D planner with a network that is quick to build."""

    preset = dataclasses.replace(
        BrainTumPlannerLight.preset,
        plans_name=BrainTumPlanner25D.preset.plans_name,
        neighbouring_slices=BrainTumPlanner25D.preset.neighbouring_slices,
    )


def extract_fingerprint(dataset_id: int) -> None:
    """nnU-Net's fingerprint, in threads: starting processes takes longer than all else in this file."""
    with (
        patch.object(multiprocessing, "get_context", lambda method: multiprocessing.dummy),
        patch.object(utils, "Pool", multiprocessing.dummy.Pool),
    ):
        extractor = DatasetFingerprintExtractor(dataset_id, num_processes=1)
        extractor.show_progress_bar = False
        extractor.run()


def case_files(raw: Path, case: str, ending: str = ".nii.gz") -> tuple[list[str], str]:
    return [str(raw / "imagesTr" / f"{case}_0000{ending}")], str(raw / "labelsTr" / f"{case}{ending}")


def preprocess_in_process(planner: BrainTumPlanner, raw: Path, target: Path, preprocessor: Any) -> PlansManager:
    """What nnU-Net's preprocessing does, without its worker processes."""
    plans = PlansManager(planner.plan_experiment())
    configuration = plans.get_configuration("2d")
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    target.mkdir(parents=True)
    for label in sorted((raw / "labelsTr").iterdir()):
        case = label.name.removesuffix(dataset_json["file_ending"])
        files = case_files(raw, case, dataset_json["file_ending"])
        preprocessor.run_case_save(str(target / case), *files, plans, configuration, dataset_json)
    return plans


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "ending", "spacing"),
    [((96, 112), ".png", None), ((96, 112), ".nii.gz", (2.7, 2.7)), ((8, 24, 32), ".nii.gz", None)],
    ids=["slices", "resampled slices", "volumes"],
)
def test_files_hold_what_nnunet_makes(
    nnunet_folders: Any, tmp_path: Path, shape: tuple[int, ...], ending: str, spacing: tuple[float, ...] | None
) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, shape=shape, num_cases=4, file_ending=ending)
    extract_fingerprint(7)
    planner = BrainTumPlannerLight(7, overwrite_target_spacing=spacing)
    datasets, sizes = [], []
    for preprocessor in (DefaultPreprocessor(verbose=False), BrainTumPreprocessor(verbose=False)):
        folder = tmp_path / type(preprocessor).__name__
        preprocess_in_process(planner, raw, folder, preprocessor)
        datasets.append(infer_dataset_class(str(folder))(str(folder)))
        sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
    assert len(datasets[1].identifiers) == 4
    for case in datasets[1].identifiers:
        stock, stock_seg, _, stock_properties = datasets[0].load_case(case)
        ours, seg, _, properties = datasets[1].load_case(case)
        assert np.array_equal(stock[:], ours[:]) and stock.dtype == ours.dtype
        assert np.array_equal(stock_seg[:], seg[:]) and stock_seg.dtype == seg.dtype
        assert stock_properties.keys() == properties.keys()
        assert np.array_equal(stock_properties["class_locations"][1], properties["class_locations"][1])
        assert (stock.chunks, stock.blocks) == (ours.chunks, ours.blocks)
        assert (blosc2.Filter.SHUFFLE in ours.schunk.cparams.filters) is (spacing is not None)
    assert sizes[1] <= sizes[0]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize(
    "wanted",
    [[1, 2, 3], [(1, 2, 3), (2, 3), (3,)], [(3, 1), 2, [-1, 0, 1, 2, 3]], [4], [(2, 4), 5]],
    ids=["labels", "regions", "ignore label", "none there", "some there"],
)
@pytest.mark.parametrize("shape", [(1, 1, 150, 180), (1, 12, 60, 50)])
def test_foreground_locations_are_nnunets(shape: tuple[int, ...], wanted: list[Any], dtype: type) -> None:
    """More voxels of a label than are drawn, fewer, none, and with 2 and 3 on the same draws of a generator."""
    random = np.random.default_rng(0)
    seg = random.choice([-1, 0, 1, 2, 3], shape, p=[0.1, 0.1, 0.6, 0.19, 0.01]).astype(dtype)
    for array in (seg, seg[:, :, ::2].copy(), seg.transpose(0, 1, 3, 2), np.zeros_like(seg)):
        expected = DefaultPreprocessor._sample_foreground_locations(array, wanted)
        found = BrainTumPreprocessor._sample_foreground_locations(array, wanted)
        assert pickle.dumps(found) == pickle.dumps(expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 20, 24), (12, 20, 24)])
def test_holes_of_the_nonzero_region(nnunet_folders: Any, shape: tuple[int, ...]) -> None:
    """What is zero inside of the head belongs to it in a volume, in nnU-Net and here; in a slice it does not."""
    write_dataset(nnunet_folders.raw, 7, shape=(20, 24), num_cases=4)
    extract_fingerprint(7)
    plans = PlansManager(BrainTumPlannerLight(7).plan_experiment())
    image = np.zeros((1, *shape), np.float32)
    image[..., 3:17, 4:20] = 100 + np.arange(16)
    middle = slice(5, 8) if shape[0] > 1 else slice(None)
    image[:, middle, 8:12, 8:12] = 0
    labels = [
        preprocessor.run_case_npy(
            image, None, {"spacing": [2.0, 2.0, 2.0]}, plans, plans.get_configuration("2d"), {"labels": {}}
        )[1]
        for preprocessor in (DefaultPreprocessor(verbose=False), BrainTumPreprocessor(verbose=False))
    ]
    assert np.array_equal(labels[0], labels[1])
    assert (labels[1] == -1).any() == (shape[0] == 1)


# ---------------------------------------------------------------------- neighbouring slices


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_stack_against_a_loop(count: int, num_slices: int) -> None:
    image = np.random.default_rng(0).normal(size=(2, num_slices, 3, 5)).astype(np.float32)
    stacked = stack_neighbouring_slices(image, count)
    assert stacked.shape == (2 * (2 * count + 1), num_slices, 3, 5) and stacked.dtype == np.float32
    for z in range(num_slices):
        expected = [image[0, z], image[1, z]]
        for distance in range(1, count + 1):
            before, after = max(z - distance, 0), min(z + distance, num_slices - 1)
            expected += [image[0, before], image[1, before], image[0, after], image[1, after]]
        assert np.array_equal(stacked[:, z], np.stack(expected))


def test_number_of_channels() -> None:
    plan = {"patch_size": [32, 32], "neighbouring_slices": 2}
    assert neighbouring_slices(plan) == 2 and num_network_channels(4, plan) == 20
    assert neighbouring_slices({"patch_size": [8, 32, 32]}) == 0
    assert num_network_channels(4, {"patch_size": [32, 32]}) == 4


@pytest.mark.parametrize("count", [-1, 1.0, "1", True, None])
def test_bad_number_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match=r'"neighbouring_slices" of the plans is .*write a whole number'):
        neighbouring_slices({"patch_size": [32, 32], "neighbouring_slices": count})


def test_3d_configuration_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match=r"belongs to 2-D configurations.*\[8, 32, 32\]; remove it"):
        neighbouring_slices({"patch_size": [8, 32, 32], "neighbouring_slices": 1})


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny set of volumes, planned and preprocessed for 2.5-D input."""
    folders = SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            folder = tmp_path_factory.mktemp(name)
            patch.setenv(f"nnUNet_{name}", str(folder))
            setattr(folders, name, folder)
        for variable in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
            patch.setenv(variable, "1")
        raw = write_dataset(folders.raw, 8, shape=(6, 32, 40), num_cases=4, spacing=2.0)
        for file in (*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()):
            image = SimpleITK.ReadImage(str(file))
            image.SetSpacing((2.0, 2.0, 5.0))
            SimpleITK.WriteImage(image, str(file))
        extract_fingerprint(8)
        target = folders.preprocessed / raw.name / "BrainTum25DPlans_2d"
        planner = SmallPlanner25D(8)
        plans = preprocess_in_process(planner, raw, target, BrainTumPreprocessor(verbose=False))
        yield SimpleNamespace(raw=raw, data=target, plans=plans, preprocessed=folders.preprocessed / raw.name)


@pytest.mark.slow
def test_planner_names_neighbours_and_preprocessor(volumes: Any) -> None:
    plans = json.loads((volumes.preprocessed / "BrainTum25DPlans.json").read_text(encoding="utf-8"))
    assert plans["configurations"]["2d"]["neighbouring_slices"] == 1
    assert plans["configurations"]["2d"]["data_identifier"] == "BrainTum25DPlans_2d"
    assert volumes.plans.get_configuration("2d").preprocessor_class is BrainTumPreprocessor
    others = [name for name in plans["configurations"] if name != "2d"]
    assert "3d_fullres" in others
    assert not any("neighbouring_slices" in plans["configurations"][name] for name in others)


@pytest.mark.slow
def test_stored_slices_have_their_neighbours(volumes: Any) -> None:
    dataset_json = json.loads((volumes.raw / "dataset.json").read_text(encoding="utf-8"))
    configuration = volumes.plans.get_configuration("2d")
    dataset = infer_dataset_class(str(volumes.data))(str(volumes.data))
    for case in ("case_00", "case_02"):
        files = case_files(volumes.raw, case)
        alone, seg, _ = DefaultPreprocessor(verbose=False).run_case(*files, volumes.plans, configuration, dataset_json)
        stored, stored_seg, *_ = dataset.load_case(case)
        assert alone.shape == (1, 6, 32, 40) and stored.shape == (3, 6, 32, 40)
        assert np.array_equal(stored[:], stack_neighbouring_slices(alone, 1))
        assert np.array_equal(stored_seg[:], seg)
        predicted, _, _ = BrainTumPreprocessor(verbose=False).run_case(
            files[0], None, volumes.plans, configuration, dataset_json
        )
        assert np.array_equal(predicted, stored[:])  # prediction sees what training saw


def test_single_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="Dataset009_Tiny holds single slices, which have no neighbours; plan with"):
        check_neighbours("Dataset009_Tiny", [1, 1], [999.0, 999.0])


def test_differing_distances_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    check_neighbours("Dataset009_Tiny", [20, 1], [5.0, 7.0])
    assert not caplog.text
    check_neighbours("Dataset009_Tiny", [20, 1], [5.0, 12.5])
    assert "Dataset009_Tiny: slices are 5 to 12.5 mm apart" in caplog.text


@pytest.mark.slow
def test_training_and_prediction(volumes: Any, tmp_path: Path) -> None:
    trainer = make_trainer(8, "BrainTum25DPlans")
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape[1] == 3
    assert np.isfinite(trainer.train_step(batch)["loss"])
    trainer.dataloader_train._finish()
    trainer.dataloader_val._finish()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))

    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, use_folds=(0,))
    files, label = case_files(volumes.raw, "case_00")
    image, properties = volumes.plans.image_reader_writer_class().read_images(files)
    segmentation = predictor.predict_single_npy_array(image, properties)
    assert segmentation.shape == (6, 32, 40)

    joint = JointPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    joint.initialize_from_trained_model_folder(trainer.output_folder_base)
    outcome = predict_folder(joint, volumes.raw / "imagesTr", tmp_path / "predicted", show_progress=False)
    assert outcome.predicted == ["case_00", "case_01", "case_02", "case_03"] and not outcome.failed
    written, _ = volumes.plans.image_reader_writer_class().read_seg(str(tmp_path / "predicted" / "case_00.nii.gz"))
    assert np.array_equal(written[0], segmentation)
