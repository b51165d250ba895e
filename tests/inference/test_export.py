"""braintum_export and braintum_predict --onnx: the networks and predictions of torch."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from tiny_training import save_model, write_images, write_preprocessed

from braintum.inference import cli, export_cli
from braintum.inference.export import int8, onnx_export
from braintum.inference.export.onnx_export import export_network
from braintum.inference.export.onnx_model import OnnxNetwork
from braintum.inference.export.onnx_predictor import OnnxJointPredictor, OnnxSegmentationPredictor
from braintum.inference.export.sessions import ENGINES
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import cpu_computes_bfloat16

pytestmark = pytest.mark.slow  # all share a model

LABELS = {"background": 0, "whole": [1, 2], "core": [2]}
CHECKPOINT = "checkpoint_best.pth"


def predict(*arguments: Any) -> int:
    return cli.predict([*map(str, arguments), "--disable_progress_bar"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model of two labels and two folds, exported by the command, and images to predict."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (folder / name).mkdir()
            patched.setenv(name, str(folder / name))
        dataset = write_preprocessed(folder / "nnUNet_preprocessed", "2d", labels=LABELS)
        dataset.dataset_json["regions_class_order"] = [1, 2]
        model = save_model(dataset, "nnUNetTrainerMultiTask", (0, 1), CHECKPOINT)
    shutil.copytree(model, folder / "model")
    write_images(folder / "images", (40, 50))
    assert export_cli.export(["-m", str(folder / "model"), "-chk", CHECKPOINT]) == 0
    yield folder


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_masks_and_classes_are_those_of_torch(trained: Path, tmp_path: Path, engine: str) -> None:
    arguments = ["-i", trained / "images", "-m", trained / "model", "-chk", CHECKPOINT, "--save_probabilities"]
    assert predict(*arguments, "-device", "cpu", "-o", tmp_path / "torch") == 0
    assert predict(*arguments, "--onnx", engine, "-o", tmp_path / "onnx") == 0
    cases = sorted(file.stem for file in (tmp_path / "torch" / "classes").iterdir())
    assert len(cases) == 4
    some_foreground = 0
    for case in cases:
        expected, found = (
            json.loads((tmp_path / way / "classes" / f"{case}.json").read_text()) for way in ("torch", "onnx")
        )
        assert found.keys() == expected.keys() and found["by_region"].keys() == {"whole", "core"}
        assert found["predicted_class"] == expected["predicted_class"]
        for key in ("probabilities", "fold_spread", "mirror_spread"):
            assert found[key] == pytest.approx(expected[key], abs=1e-5), key
        for region, values in expected["by_region"].items():
            assert found["by_region"][region] == pytest.approx(values, abs=1e-5)
        probabilities = [np.load(tmp_path / way / f"{case}.npz")["probabilities"] for way in ("torch", "onnx")]
        np.testing.assert_allclose(*probabilities, atol=1e-4)
        masks = [
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / way / f"{case}.nii.gz"))
            for way in ("torch", "onnx")
        ]
        assert (masks[0] == masks[1]).mean() > 0.999
        some_foreground += int(masks[0].any())
    assert some_foreground
    assert json.loads((tmp_path / "onnx" / "predict_from_raw_data_args.json").read_text())["device"] == "cpu"


@pytest.fixture
def exports_of_fold_1(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported from now on, it is fold 1: torch takes seconds for a file."""
    exported = trained / "model" / "fold_1" / "checkpoint_best.onnx"
    monkeypatch.setattr(onnx_export, "_write", lambda network, shape, text, file: shutil.copyfile(exported, file))


@pytest.mark.slow
@pytest.mark.usefixtures("exports_of_fold_1")
def test_export_elsewhere_needs_no_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "exported"
    command = ["-m", str(trained / "model"), "-chk", CHECKPOINT, "-f", "1", "-o", str(target)]
    assert export_cli.export(command) == 0
    assert "largest difference in class_logits_by_region" in capsys.readouterr().out
    files = sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
    assert files == ["dataset.json", "fold_1/checkpoint_best.onnx", "plans.json"]
    predictor: Any = OnnxJointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(target), None, CHECKPOINT)
    reference: Any = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    reference.initialize_from_trained_model_folder(str(trained / "model"), [1], CHECKPOINT)
    assert (predictor.folds, predictor.fingerprints) == ([1], reference.fingerprints)
    assert predictor.allowed_mirroring_axes == reference.allowed_mirroring_axes
    assert predictor.region_channels == reference.region_channels
    assert predictor.trainer_name == reference.trainer_name
    patch = (32, 32)
    assert predictor.network.compute_conv_feature_map_size(patch) == reference.network.compute_conv_feature_map_size(
        patch
    )
    for options in (["-m", trained / "model", "--class-model", target], ["-m", target, "--class-model", target]):
        options += ["-chk", CHECKPOINT, "--class-checkpoint", CHECKPOINT, "--onnx"]
        assert predict("-i", trained / "images", "-o", tmp_path / f"out {len(str(options[1]))}", *options) == 0
    with pytest.raises(NotImplementedError, match="in bulk only"):
        predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 1, 32, 32))
    (target / "plans.json").write_text((target / "plans.json").read_text().replace("Tiny1Plans", "OtherPlans"))
    with pytest.raises(ValueError, match="is the folder of another model"):
        export_cli.export(command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "configuration"),
    [
        ("nnUNetTrainerAttentionUNet", "3d_fullres"),
        ("nnUNetTrainerBrainTumNetNoTransformer", "2d"),
        ("nnUNetTrainerClassifierUNet", "3d_fullres"),
        ("nnUNetTrainerMultiTask", "3d_fullres"),
    ],
)
def test_networks(nnunet_folders: Any, trainer: str, configuration: str) -> None:
    """A few; benchmarks/networks/export_check.py has all of them."""
    dataset = write_preprocessed(nnunet_folders.preprocessed, configuration)
    folder = save_model(dataset, trainer, (0,), CHECKPOINT)
    (exported,) = onnx_export.export_model(folder, None, CHECKPOINT, tolerance=1e-3)
    has_classes = trainer != "nnUNetTrainerAttentionUNet"
    assert set(exported.differences) == {"segmentation", *(["class_logits"] if has_classes else [])}
    predictor: Any = (OnnxJointPredictor if has_classes else OnnxSegmentationPredictor)(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), [0], CHECKPOINT)
    assert predictor.network.num_classes == (3 if has_classes else None)
    assert predictor.network.description.trainer == trainer
    if not has_classes:
        with pytest.raises(ValueError, match="predicts no class; name one that does"):
            OnnxJointPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(
                str(folder), [0], CHECKPOINT
            )


@pytest.mark.usefixtures("exports_of_fold_1")
def test_disagreement_leaves_nothing_behind(model: Path) -> None:
    folder = model / "fold_0"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=r"fold_0/checkpoint_best.onnx is not written.*differ by .* more than 0.001"):
        export_cli.export(["-m", str(model), "-chk", CHECKPOINT, "-f", "0"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(ValueError, match="--tolerance has to be positive, got nan"):
        export_cli.export(["-m", str(model), "--tolerance", "nan"])


@pytest.mark.slow
def test_networks_that_torch_cannot_export(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor: Any = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained / "model"), [0], CHECKPOINT)

    def depends_on_values(x: torch.Tensor, with_classes: bool = False) -> Any:
        return (x, x[0]) if float(x.sum()) > 0 else (x, x[1])

    monkeypatch.setattr(predictor.network, "forward", depends_on_values)
    with pytest.raises(ValueError, match="torch cannot export the network of nnUNetTrainerMultiTask: "):
        export_network(predictor, predictor.list_of_parameters[0], tmp_path / "network.onnx", 1e-3)
    monkeypatch.setattr(onnx_export, "_LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match=r"0\.0 GiB of weights, an ONNX file holds two at most"):
        export_network(predictor, predictor.list_of_parameters[0], tmp_path / "network.onnx", 1e-3)
    assert not list(tmp_path.iterdir())


def refuse_onnx(trained: Path, model: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        predict("-i", trained / "images", "-o", model.parent / "out", "-m", model, "-chk", CHECKPOINT, "--onnx")
    assert not (model.parent / "out").exists()


def test_what_was_not_exported(trained: Path, model: Path) -> None:
    (model / "fold_1" / "checkpoint_best.onnx").unlink()
    refuse_onnx(
        trained,
        model,
        r"no exported model at .*fold_1/checkpoint_best.onnx; export it with: braintum_export -m .*model -f 1 "
        "-chk checkpoint_best.pth",
        FileNotFoundError,
    )


def test_exports_of_other_weights_plans_and_classes(trained: Path, model: Path) -> None:
    dataset = json.loads((model / "dataset.json").read_text())
    names = {"class_names": dataset["classification"]["class_names"][::-1]}
    (model / "dataset.json").write_text(json.dumps(dataset | {"classification": dataset["classification"] | names}))
    refuse_onnx(trained, model, "checkpoint_best.pth was trained with other files: .*class_names is")
    (model / "fold_0" / CHECKPOINT).rename(model / "fold_0.pth")
    (model / "fold_1" / CHECKPOINT).rename(model / "fold_1.pth")
    (model / "dataset.json").write_text(json.dumps(dataset | {"channel_names": {"0": "T1", "1": "T2"}}))
    refuse_onnx(trained, model, r"\(1, 2, \(32, 32\)\)\) does not belong to plans.json")
    dataset["classification"]["class_names"].append("pituitary")
    (model / "dataset.json").write_text(json.dumps(dataset))
    refuse_onnx(trained, model, "it predicts 3 classes and the regions .*not 4 and")
    shutil.copy(model / "fold_1.pth", model / "fold_0" / CHECKPOINT)
    refuse_onnx(trained, model, "fold_0/checkpoint_best.onnx was exported from other weights than checkpoint_best.pth")


def test_damaged_and_foreign_files(trained: Path, model: Path) -> None:
    import onnx

    file = model / "fold_0" / "checkpoint_best.onnx"
    content = onnx.load(file)
    (entry,) = content.metadata_props
    entry.value = entry.value.replace('"format": 1', '"format": 2')
    onnx.save(content, file)
    refuse_onnx(trained, model, "another version of braintum .*format 2 instead of 1")
    del content.metadata_props[:]
    onnx.save(content, file)
    refuse_onnx(trained, model, "was not exported by braintum")
    file.write_bytes(file.read_bytes()[:1000])
    refuse_onnx(trained, model, "checkpoint_best.onnx is damaged, or no ONNX file")


def test_failures_of_onnxruntime_are_those_of_torch(trained: Path) -> None:
    network = OnnxNetwork(trained / "model" / "fold_0" / "checkpoint_best.onnx")
    with pytest.raises(RuntimeError, match=r"checkpoint_best.onnx: (.|\n)*Got: 31 Expected: 32"):
        network(torch.zeros(1, 1, 31, 32))

    def without_memory(*arguments: Any) -> None:
        raise Exception("BFCArena: Failed to allocate memory for requested buffer of size 1")

    network._session = type("Session", (), {"run": without_memory})()
    with pytest.raises(MemoryError, match="requested buffer"):
        network(torch.zeros(1, 1, 32, 32))


def test_openvino_computes_as_torch_does_under_autocast(trained: Path) -> None:
    file = trained / "model" / "fold_0" / "checkpoint_best.onnx"
    image = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    network, reference = OnnxNetwork(file, engine="openvino"), OnnxNetwork(file)
    expected = reference(image)
    np.testing.assert_allclose(network(image), expected, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(image)
    assert (rounded - expected).abs().max() < 0.1
    if cpu_computes_bfloat16():
        assert not torch.equal(rounded, network(image))


@pytest.fixture
def int8_command(trained: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exports fold 1 in 8 bits; the data set is where it was preprocessed."""
    monkeypatch.setenv("nnUNet_preprocessed", str(trained / "nnUNet_preprocessed"))
    splits = trained / "nnUNet_preprocessed" / "Dataset007_Tiny" / "splits_final.json"
    splits.write_text(json.dumps(json.loads(splits.read_text())[:1] * 2))  # of two folds
    target = str(model.parent / "int8")
    return ["-m", str(model), "-chk", CHECKPOINT, "-f", "1", "-o", target, "--int8", "3", "--most-lost", "1"]


@pytest.mark.slow
@pytest.mark.usefixtures("exports_of_fold_1")
def test_int8_is_measured_on_held_out_cases(
    trained: Path, tmp_path: Path, int8_command: list[str], capsys: pytest.CaptureFixture
) -> None:
    import onnx

    assert export_cli.export([*int8_command, "--triton", str(tmp_path / "triton")]) == 0
    report = capsys.readouterr().out
    assert re.search(r"held-out cases +Dice, float32 → int8 +accuracy", report)
    assert len(re.findall(r"[01]\.\d{4} → [01]\.\d{4}", report)) == 2
    (served,) = (tmp_path / "triton").iterdir()
    assert served.name == "Dataset007_Tiny__nnUNetTrainerMultiTask__Tiny1Plans__2d__fold_1__int8"
    files = [
        onnx.load(trained / "model" / "fold_1" / "checkpoint_best.onnx"),
        onnx.load(tmp_path / "int8" / "fold_1" / "checkpoint_best.onnx"),
    ]
    numbers = [sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in file.graph.initializer) for file in files]
    assert numbers[0] == 0 and numbers[1] > 5
    image = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    exact = OnnxNetwork(trained / "model" / "fold_1" / "checkpoint_best.onnx")
    for engine in ENGINES:
        network = OnnxNetwork(tmp_path / "int8" / "fold_1" / "checkpoint_best.onnx", engine=engine)
        assert network.description.fingerprint == f"int8 of {exact.description.fingerprint}"
        difference = (network(image) - exact(image)).abs().max()
        assert 0 < difference < 0.5 * exact(image).std() + 0.5
    shutil.copy(tmp_path / "int8" / "fold_1" / "checkpoint_best.onnx", tmp_path / "model" / "fold_1")
    refuse_onnx(trained, tmp_path / "model", "exported from other weights than checkpoint_best.pth")


@pytest.mark.slow
@pytest.mark.usefixtures("exports_of_fold_1")
def test_int8_that_costs_too_much_is_not_written(
    trained: Path, tmp_path: Path, int8_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8._Cases, "compare", lambda self, networks: ((0.9, 0.7), (1.0, 1.0), 0.8))
    with pytest.raises(ValueError, match=r"Dice on \d held-out cases falls from 0.9000 to 0.7000, by more than 0.1"):
        export_cli.export([*int8_command, "--most-lost", "0.1"])
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tiny_2d does not exist: int8 is calibrated on preprocessed"):
        export_cli.export(int8_command)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(ValueError, match="set nnUNet_preprocessed"):
        export_cli.export(int8_command)
    assert not (tmp_path / "int8").exists()
    with pytest.raises(ValueError, match="name another model folder with -o"):
        export_cli.export(["-m", str(trained / "model"), "--int8"])
    with pytest.raises(ValueError, match="is the model's own folder"):
        export_cli.export([*int8_command, "-o", str(tmp_path / "model")])
    with pytest.raises(ValueError, match="--int8 needs a case at least, got 0"):
        export_cli.export([*int8_command, "--int8", "0"])


def test_dice_and_means_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0]]) > 0
    found = np.array([[1, 0, 1, 1]]) > 0
    assert int8._dice(found, truth, truth) == [2 * 1 / (3 + 2)]
    assert int8._dice(found, ~truth & truth, ~truth & truth) == []
    assert int8._means(([0.5, 1.0], [0.25])) == (0.75, 0.25)
    assert np.isnan(int8._means(([], []))).all()


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_missing_packages(trained: Path, model: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf'{missing}.*pip install "braintum\[onnx\]"'):
        export_cli.export(["-m", str(model), "-chk", CHECKPOINT])
    if missing == "onnxruntime":
        refuse_onnx(trained, model, r'onnxruntime cannot be imported.*pip install "braintum\[onnx\]"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-device", "cuda"], "--onnx predicts on the CPU, not on cuda"),
        (["--exact"], "--exact is nnU-Net's computation by torch"),
        (["-precision", "bfloat16"], "onnxruntime computes in float32"),
    ],
)
def test_what_exported_networks_cannot_do(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict("-i", "images", "-o", "out", "-m", "model", "--onnx", *options)
