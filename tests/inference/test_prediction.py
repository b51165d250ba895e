"""braintum_predict and stock prediction on the same model."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from conftest import NnunetFolders
from nnunet_runs import make_trainer, plan_and_preprocess, run_command, write_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from PIL import Image

from braintum.commands import command
from braintum.conversion.format.cases import Case, write_cases
from braintum.inference.cli import predict
from braintum.inference.predict_folder import predict_folder
from braintum.inference.prediction.input_files import find_cases
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.preprocessing import preprocess_case


def make_model(
    folders: Any, shape: tuple[int, ...], configuration: str = "2d", num_folds: int = 2, **options: Any
) -> Path:
    """A model folder with untrained, but different, weights a fold, as training would leave it."""
    dataset_options = {key: options.pop(key) for key in ("file_ending", "labels", "num_cases") if key in options}
    write_dataset(folders.raw, 7, shape=shape, **dataset_options)
    plans = plan_and_preprocess(7, configuration=configuration, **options)
    for fold in range(num_folds):
        torch.manual_seed(fold)
        trainer = make_trainer(7, plans, configuration, fold=fold)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("nnUNet_n_proc_DA", "0")  # workers would only be started and ended
            trainer.on_train_start()
        for parameter in trainer.network.decoder.seg_layers.parameters():  # so that some foreground is predicted
            torch.nn.init.normal_(parameter, std=0.5)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return Path(trainer.output_folder_base)


def predict_here(*arguments: str) -> SimpleNamespace:
    """The command in this process, which has imported everything; :func:`run_command` starts one."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = command.run_command(predict, list(arguments))
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def load_predictor(predictor_class: type, model: Path) -> Any:
    predictor = predictor_class(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1), "checkpoint_final.pth")
    return predictor


def arrays(folder: Path, ending: str) -> dict[str, np.ndarray]:
    def read(file: Path) -> np.ndarray:
        if ending == ".png":
            return np.asarray(Image.open(file))
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))

    return {file.name: read(file) for file in sorted(folder.glob(f"*{ending}"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "configuration", "options"),
    [
        ((40, 36), "2d", {"overwrite_target_spacing": (4, 4)}),
        ((64, 50), "2d", {"overwrite_target_spacing": (2, 2), "file_ending": ".png"}),
        ((24, 32, 20), "3d_fullres", {}),
        ((10, 32, 32), "2d", {}),
        ((32, 32), "2d", {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}),
    ],
    ids=["2-D resampled", "PNG resampled", "3-D", "slices of volumes", "regions"],
)
def test_segmentations_equal_stock_prediction(
    nnunet_folders: Any, tmp_path: Path, shape: tuple[int, ...], configuration: str, options: dict
) -> None:
    model = make_model(nnunet_folders, shape, configuration, num_cases=4, **options)
    images = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr"
    ending = options.get("file_ending", ".nii.gz")
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    stock.mkdir()
    load_predictor(nnUNetPredictor, model).predict_from_files_sequential(str(images), str(stock), True)
    outcome = predict_folder(load_predictor(JointPredictor, model), images, ours, save_probabilities=True)
    assert len(outcome.predicted) == 4 and not outcome.failed
    expected, found = arrays(stock, ending), arrays(ours, ending)
    assert expected.keys() == found.keys() and len(found) == 4
    for name, array in expected.items():
        assert array.shape == tuple(shape)
        np.testing.assert_array_equal(found[name], array)
        case = name.removesuffix(ending)
        # the softmax differs in the last bit with torch's number of threads, which stock sets differently for export
        np.testing.assert_allclose(
            np.load(ours / f"{case}.npz")["probabilities"],
            np.load(stock / f"{case}.npz")["probabilities"],
            rtol=0,
            atol=2e-7,
        )
    assert any(array.any() for array in expected.values())

    with open(ours / "classes.csv", newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    for name, array in found.items():
        case = name.removesuffix(ending)
        result = json.loads((ours / "classes" / f"{case}.json").read_text(encoding="utf-8"))
        voxel = {2: 4.0, 3: 8.0}[len(shape)] if ending != ".png" else 1.0
        unit = "px" if ending == ".png" else {2: "mm2", 3: "mm3"}[len(shape)]
        assert (result["tumour_volume"], result["volume_unit"]) == (
            pytest.approx(voxel * np.count_nonzero(array)),
            unit,
        )
        assert sum(result["probabilities"].values()) == pytest.approx(1)
        assert len(result["per_fold"]) == 2
        assert all(value > 0 for value in (*result["fold_spread"].values(), *result["mirror_spread"].values()))
        assert rows[case]["predicted_class"] == max(result["probabilities"], key=result["probabilities"].get)


@pytest.fixture(scope="module")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of nnU-Net's three folders, with the model of :func:`model`."""
    root = tmp_path_factory.mktemp("built")
    folders = NnunetFolders.below(root)
    with pytest.MonkeyPatch.context() as patch:
        folders.enter(patch)
        make_model(folders, (32, 32))
    return root


@pytest.fixture
def model(nnunet_folders: Any, built_model: Path) -> Path:
    """A model of one's own, which may be damaged."""
    for folder in (nnunet_folders.raw, nnunet_folders.preprocessed, nnunet_folders.results):
        shutil.copytree(built_model / folder.name, folder, dirs_exist_ok=True)
    (plans,) = nnunet_folders.results.glob("*/*/plans.json")
    return plans.parent


@pytest.mark.slow
def test_interrupted_and_divided_predictions_compose(
    model: Path, nnunet_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, predictor = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr", load_predictor(JointPredictor, model)
    whole, parts, interrupted = tmp_path / "whole", tmp_path / "parts", tmp_path / "interrupted"
    predict_folder(predictor, images, whole)
    for part_id in range(2):
        predict_folder(predictor, images, parts, num_parts=2, part_id=part_id, num_workers=part_id)
    assert (parts / "classes.csv").read_bytes() == (whole / "classes.csv").read_bytes()

    original, calls = JointPredictor.predict_logits_from_preprocessed_data, []

    def fail_on_fourth(self: Any, data: torch.Tensor) -> torch.Tensor:
        calls.append(data)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(JointPredictor, "predict_logits_from_preprocessed_data", fail_on_fourth)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(predictor, images, interrupted)
    assert not list(interrupted.glob(".partial*"))
    # a segmentation without its class result is not complete
    (interrupted / "case_07.nii.gz").write_bytes(b"half")
    outcome = predict_folder(predictor, images, interrupted, continue_prediction=True)
    assert len(outcome.skipped) == 3 and len(outcome.predicted) == 5 and outcome.listed == 8
    assert (interrupted / "classes.csv").read_bytes() == (whole / "classes.csv").read_bytes()
    for name, array in arrays(whole, ".nii.gz").items():
        np.testing.assert_array_equal(arrays(interrupted, ".nii.gz")[name], array)


@pytest.mark.slow
def test_bad_cases_are_named_and_the_others_predicted(model: Path, nnunet_folders: Any, tmp_path: Path) -> None:
    images, target = tmp_path / "images", tmp_path / "out"
    shutil.copytree(nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr", images)
    shutil.copy(images / "case_00_0000.nii.gz", images / "case_00_0001.nii.gz")
    (images / "case_01_0000.nii.gz").write_bytes((images / "case_01_0000.nii.gz").read_bytes()[:60])
    (images / "case_02_0000.nii.gz").rename(images / "nochannel.nii.gz")
    colour = SimpleITK.GetImageFromArray(np.ones((32, 32, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(images / "case_03_0000.nii.gz"))
    finished = run_command("braintum_predict", "-i", str(images), "-o", str(target), "-m", str(model), "-device", "cpu")
    assert finished.returncode == 3, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "4 cases predicted; 4 listed" in finished.stdout
    for text in (
        r"case_00_*.nii.gz: the model takes 1 channel(s), 0000 to 0000, found 0000, 0001",
        "case_01_0000.nii.gz: truncated: its gzip stream does not end",
        "nochannel.nii.gz: the name lacks the channel; rename it to CASE_0000.nii.gz",
        "case_03_0000.nii.gz: ",
    ):
        assert text in finished.stderr
    assert sorted(file.name for file in target.glob("*.nii.gz")) == [
        f"case_0{number}.nii.gz" for number in (4, 5, 6, 7)
    ]
    assert not list(target.glob(".partial*"))


@pytest.mark.slow
def test_patients_of_divided_predictions(model: Path, nnunet_folders: Any, tmp_path: Path) -> None:
    images, cases_file = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr", tmp_path / "cases.csv"
    names = [f"case_{number:02d}" for number in range(8)]
    patients = dict(zip(names, ["A", "A", "B", "", "B", "B", "C", "A"], strict=True))
    write_cases(cases_file, [Case(name, patient=patient) for name, patient in patients.items() if name != "case_05"])
    target = tmp_path / "out"
    arguments = ["-i", str(images), "-o", str(target), "-m", str(model), "-device", "cpu"]
    arguments += ["--cases", str(cases_file), "-num_parts", "2"]
    finished = predict_here(*arguments)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert f"{cases_file} has no row for 1 of the 8 cases" in finished.stderr and "case_05; add" in finished.stderr
    assert not target.exists()

    write_cases(cases_file, [Case(name, patient=patient) for name, patient in patients.items()])
    finished = predict_here(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert f"3 patients listed in {target / 'patients.csv'}" in finished.stdout  # of the first part
    finished = predict_here(*arguments, "-part_id", "1")
    assert f"4 patients listed in {target / 'patients.csv'}" in finished.stdout
    with open(target / "patients.csv", newline="") as stream:
        rows = {row["patient"]: row for row in csv.DictReader(stream)}
    results = [json.loads((target / "classes" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    weights = [result["tumour_evidence"] for result in results]
    assert all(0.01 <= weight <= 1 for weight in weights) and len(set(weights)) == 8  # one window a case
    for patient, indices in {"A": [0, 1, 7], "B": [2, 4, 5], "case_03": [3], "C": [6]}.items():
        row = rows.pop(patient)
        probabilities = {}
        for name in ("meningioma", "glioma", "no_tumor"):
            weighted = sum(weights[index] * results[index]["probabilities"][name] for index in indices)
            probabilities[name] = weighted / sum(weights[index] for index in indices)
            assert float(row[f"probability_{name}"]) == pytest.approx(probabilities[name], abs=1e-6)
        assert row["predicted_class"] == max(probabilities, key=lambda name: probabilities[name])
        assert float(row["confidence"]) == pytest.approx(max(probabilities.values()), abs=1e-6)
        volume = sum(results[index]["tumour_volume"] for index in indices)
        assert (row["num_cases"], float(row["tumour_volume"]), row["volume_unit"]) == (str(len(indices)), volume, "mm2")
    assert not rows

    # what was said of patients must not outlive a case that is predicted again
    predict_folder(load_predictor(JointPredictor, model), images, target)
    assert not (target / "patients.csv").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((1, 1, 4, 4), np.nan), "x_0000.nii.gz: NaN or infinite intensities; repair"),
        (np.ones((3, 1, 4, 4)), "x_0000.nii.gz: 3 channels, but the model takes 1; convert"),
        (AssertionError("bare"), r"x_0000.nii.gz: cannot be read or preprocessed \(bare\); check the file"),
    ],
    ids=["NaN", "channels", "nnU-Net's assertions"],
)
def test_preprocessing_faults_name_file_and_remedy(data: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "braintum.inference.prediction.preprocessing.check_images", lambda files: None
    )  # there are none

    class Preprocessor:
        def __init__(self, verbose: bool) -> None: ...

        def run_case_npy(self) -> None: ...

        def run_case(self, *args: Any) -> tuple:
            if isinstance(data, Exception):
                raise data
            return data, None, {}

    configuration = SimpleNamespace(preprocessor_class=Preprocessor, configuration={})
    description = {"plans_manager": None, "dataset_json": {}, "num_channels": 1, "resampling": None}
    model = SimpleNamespace(configuration_manager=configuration, **description)
    with pytest.raises(ValueError, match=message):
        preprocess_case(["x_0000.nii.gz"], model)  # type: ignore[arg-type]


@pytest.mark.slow
def test_network_that_answers_nan(model: Path, nnunet_folders: Any, tmp_path: Path) -> None:
    predictor = load_predictor(JointPredictor, model)
    for weights in predictor.list_of_parameters:
        next(iter(weights.values())).fill_(3e38)  # finite, but nothing that is computed with it
    images = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr"
    for exact in (True, False):
        target = tmp_path / f"exact {exact}"
        failed = predict_folder(predictor, images, target, exact=exact, show_progress=False).failed
        assert len(failed) == len(list(images.iterdir()))
        assert all("answer is NaN or infinite; its checkpoint may be damaged" in fault for fault in failed.values())
        assert not list((target / "classes").glob("*.json"))


@pytest.mark.slow
def test_lanes_give_nnunets_files(
    model: Path, nnunet_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr"
    stock = tmp_path / "stock"
    stock.mkdir()
    load_predictor(nnUNetPredictor, model).predict_from_files_sequential(str(images), str(stock))
    expected = {file.name: file.read_bytes() for file in stock.glob("*.nii.gz")}
    assert len(expected) > 3
    for cores in (1, 3):
        monkeypatch.setattr("braintum.inference.prediction.case_streams.available_cores", lambda cores=cores: cores)
        ours = tmp_path / str(cores)
        predict_folder(load_predictor(JointPredictor, model), images, ours, show_progress=False)
        assert {file.name: file.read_bytes() for file in ours.glob("*.nii.gz")} == expected


def test_find_cases(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input folder .* does not exist"):
        find_cases(tmp_path / "absent", ".nii.gz", 1)
    with pytest.raises(FileNotFoundError, match=r"no file \*.nii.gz, it is empty; .*CASE_0000.nii.gz"):
        find_cases(tmp_path, ".nii.gz", 1)
    for name in ("b_0000.png", "b_0001.png", "a_x_0000.png", "a_x_0001.png", "c_0000.png"):
        (tmp_path / name).touch()
    cases, failed = find_cases(tmp_path, ".png", 2)
    assert {case: [Path(file).name for file in files] for case, files in cases.items()} == {
        "a_x": ["a_x_0000.png", "a_x_0001.png"],
        "b": ["b_0000.png", "b_0001.png"],
    }
    assert list(failed) == ["c"]


@pytest.mark.slow
def test_wrong_models_and_folders(model: Path, nnunet_folders: Any, tmp_path: Path) -> None:
    images = nnunet_folders.raw / "Dataset007_Tiny" / "imagesTr"
    predictor = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)

    def load(folder: Path = model, folds: Any = None, checkpoint: str = "checkpoint_final.pth") -> None:
        predictor.initialize_from_trained_model_folder(str(folder), folds, checkpoint)

    with pytest.raises(FileNotFoundError, match="no fold with a checkpoint_best.pth"):
        load(checkpoint="checkpoint_best.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*fold_4"):
        load(folds=(4,))
    with pytest.raises(FileNotFoundError, match="no folder of a trained model: dataset.json is missing"):
        load(tmp_path)
    load()
    assert len(predictor.list_of_parameters) == 2
    with pytest.raises(ValueError, match="input and output are the same folder"):
        predict_folder(predictor, images, images)
    foreign = tmp_path / "foreign" / "classes"
    foreign.mkdir(parents=True)
    (foreign / "other.json").write_text('{"probabilities": {"a": 1}}')
    with pytest.raises(ValueError, match="other.json is no result of a model with the classes meningioma"):
        predict_folder(predictor, images, foreign.parent)

    plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))["plans_name"]
    stock = make_trainer(7, plans, trainer="nnUNetTrainer")
    stock.on_train_start()
    stock.save_checkpoint(str(Path(stock.output_folder) / "checkpoint_final.pth"))
    with pytest.raises(ValueError, match="nnUNetTrainer, which predicts no class; name one that does"):
        load(Path(stock.output_folder_base))
