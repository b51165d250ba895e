"""Plans made by hand for version 0.1 name networks as ``architectures.MODULE.CLASS``: their models are good as ever."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from nnunet_runs import make_trainer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_training import TinyDataset, save_model, write_images, write_preprocessed

from braintum.architectures.networks.resse_lka_unet import ResSELKAUNet
from braintum.architectures.old_names import current_architecture, modules
from braintum.commands.command import run_command
from braintum.inference.cli import predict
from braintum.inference.models.segmentation_predictor import SegmentationPredictor

OLD = "architectures.resse_lka_unet.ResSELKAUNet"
UNKNOWN = ("architectures.resse_lka.ResSELKAUNet", "architectures.resse_lka_unet.UNet3000", "architectures.cbam")


def rename_network(plans: Any, name: str) -> Any:
    for configuration in plans["configurations"].values():
        configuration["architecture"]["network_class_name"] = name
    return plans


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """Preprocessed; its plans name our network as it is called now."""
    for name, value in (("num_epochs", "1"), ("num_iterations_per_epoch", "1")):
        monkeypatch.setenv(f"braintum_{name}", value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    rename_network(dataset.plans, f"{ResSELKAUNet.__module__}.{ResSELKAUNet.__qualname__}")
    return dataset


def old_form(model: Path, name: str = OLD) -> Path:
    """The model as version 0.1 left it."""
    folder = model.with_name(f"old_{model.name}")
    shutil.copytree(model, folder)
    plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    (folder / "plans.json").write_text(json.dumps(rename_network(plans, name)), encoding="utf-8")
    return folder


def predict_with(model: Path, images: Path, target: Path) -> int:
    options = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--save_probabilities"]
    return run_command(predict, [*map(str, options), "--disable_progress_bar"], needs_nnunet=False)


def test_names() -> None:
    old = {
        "network_class_name": OLD,
        "arch_kwargs": {"nonlin": "architectures.cbam.CBAM", "norm_op": "torch.nn.InstanceNorm2d", "dropout_op": None},
        "_kw_requires_import": ["nonlin", "norm_op", "dropout_op", "conv_op"],
    }
    before = json.dumps(old)
    assert current_architecture(old, "plans.json") == {
        "network_class_name": "braintum.architectures.networks.resse_lka_unet.ResSELKAUNet",
        "arch_kwargs": {**old["arch_kwargs"], "nonlin": "braintum.architectures.blocks.cbam.CBAM"},
        "_kw_requires_import": old["_kw_requires_import"],
    }
    assert json.dumps(old) == before


def test_every_module_has_a_name_of_its_own() -> None:
    files = [file for file in (REPOSITORY / "architectures").rglob("*.py") if file.name != "__init__.py"]
    assert {file.stem for file in files} == modules().keys() and len(files) == len(modules())


def test_prediction(dataset: TinyDataset, tmp_path: Path) -> None:
    model = save_model(dataset, "nnUNetTrainerResSELKAMultiTask", (0,), "checkpoint_final.pth")
    images = write_images(tmp_path / "images", (32, 32), num_cases=2)
    assert predict_with(model, images, tmp_path / "new") == predict_with(old_form(model), images, tmp_path / "old") == 0
    written = {file.relative_to(tmp_path / "new") for file in (tmp_path / "new").rglob("case_*")}
    assert {"case_0.nii.gz", "case_1.npz", "classes/case_1.json"} <= {file.as_posix() for file in written}
    for file in written:
        assert (tmp_path / "old" / file).read_bytes() == (tmp_path / "new" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("trainer", "predictor"),
    [("nnUNetTrainer", SegmentationPredictor), ("nnUNetTrainerResSELKA", nnUNetPredictor)],
    ids=["stock trainer", "stock prediction"],
)
def test_beside_nnunets_own(dataset: TinyDataset, trainer: str, predictor: type[nnUNetPredictor]) -> None:
    model = save_model(dataset, trainer, (0,), "checkpoint_final.pth")
    image, logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for folder in (model, old_form(model)):
        loaded = predictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        loaded.initialize_from_trained_model_folder(str(folder), (0,))
        assert type(loaded.network) is ResSELKAUNet
        logits.append(loaded.predict_logits_from_preprocessed_data(image))
    assert torch.equal(*logits)


def test_training_goes_on(dataset: TinyDataset, nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    (folder / "TinyPlans.json").write_text(json.dumps(rename_network(dataset.plans, OLD)), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset.dataset_json), encoding="utf-8")
    trainer = make_trainer(7, "TinyPlans", trainer="nnUNetTrainerResSELKA")
    trainer.run_training()
    assert type(trainer.bare_network) is ResSELKAUNet
    weights = {name: tensor.clone() for name, tensor in trainer.bare_network.state_dict().items()}
    monkeypatch.setenv("braintum_num_epochs", "2")
    resumed = make_trainer(7, "TinyPlans", trainer="nnUNetTrainerResSELKA", resume=True)
    assert resumed.current_epoch == 1
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.bare_network.state_dict().items())
    resumed.run_training()
    assert resumed.current_epoch == 2
    written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text(encoding="utf-8"))
    assert written["configurations"]["2d"]["architecture"]["network_class_name"] == OLD  # the hash of plans stays


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_name(dataset: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    model = save_model(dataset, "nnUNetTrainerResSELKAMultiTask", (0,), "checkpoint_final.pth")
    images = write_images(tmp_path / "images", (32, 32), num_cases=1)
    folder = old_form(model, name)
    assert predict_with(folder, images, tmp_path / "masks") == 1
    said = capsys.readouterr().err
    assert f"error: {folder / 'plans.json'} names {name} as a part of the network" in said
    assert "there is no such class in braintum.architectures. Write the path" in said
    trainer = TinyDataset(rename_network(dataset.plans, name), dataset.dataset_json, "2d").trainer(
        "nnUNetTrainerResSELKA"
    )
    with pytest.raises(ValueError, match=f"TinyPlans.json names {name}"):
        trainer.initialize()
