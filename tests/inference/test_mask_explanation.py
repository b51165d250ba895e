"""Explanations of masks: of models that only segment, and of others with --mask."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from tiny_training import save_model, write_images, write_preprocessed
from torch import nn

from braintum.inference import explain_cli
from braintum.inference.explanation.attribution import METHODS, feature_modules, hires_cam, integrated_gradients
from braintum.inference.explanation.explainers import predictive_entropy
from braintum.inference.explanation.explanation import explain_preprocessed
from braintum.inference.explanation.subjects import MaskScore, MaskSubject
from braintum.inference.models.segmentation_predictor import SegmentationPredictor


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes all processors, which slows tiny networks down where tests run side by side."""
    monkeypatch.setattr("braintum.inference.prediction.devices.os.cpu_count", lambda: 1)


class Threshold(nn.Module):
    """Marks what is bright, from its encoder's one feature map; nothing else counts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Conv2d(1, 2, 1)])
        with torch.no_grad():
            for layer, weight, bias in ((self.encoder[0], [1.0], [0.0]), (self.decoder.seg_layers[0], [0, 3.0], 0.0)):
                layer.weight.copy_(torch.tensor(weight).view_as(layer.weight))
                layer.bias.copy_(torch.tensor(bias))
            self.decoder.seg_layers[0].bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder.seg_layers[0](self.encoder(x))


def subject(mask: torch.Tensor) -> MaskSubject:
    return MaskSubject(0, (1,), False, mask)


def test_score_is_the_mean_log_odds() -> None:
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1:3, 2:4] = True
    found = MaskScore(nn.Identity(), [1, 3], False, mask)(logits)
    inside = torch.softmax(logits, 1)[:, [1, 3]].sum(1)
    expected = torch.logit(inside)[:, mask].mean(1, keepdim=True)
    torch.testing.assert_close(found, expected)
    regions = MaskScore(nn.Identity(), [2], True, mask)(logits)
    torch.testing.assert_close(regions, logits[:, 2][:, mask].mean(1, keepdim=True))


@pytest.mark.parametrize("method", ["hirescam", "integrated_gradients"])
def test_attribution_lies_in_the_mask(method: str) -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[..., 2:8, 2:8], image[..., 12:20, 10:16] = 1.0, 2.0
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[2:8, 2:8] = True
    found = METHODS[method]()(Threshold().eval(), image, subject(mask))
    np.testing.assert_allclose(found.attribution[mask], 3 / 36, rtol=1e-5)  # what each of 36 voxels adds to the mean
    assert found.attribution[~mask].abs().max() == 0


def test_features_are_the_encoders() -> None:
    network = Threshold()
    ((module, size),) = feature_modules(network, torch.zeros(1, 1, 8, 8), subject(torch.ones(8, 8, dtype=torch.bool)))
    assert module is network.encoder and size == (8, 8)


def predictor_of(network: Any, folder: Path) -> SegmentationPredictor:
    dataset = write_preprocessed(folder, "2d")
    manager = PlansManager({**dataset.plans, "foreground_intensity_properties_per_channel": {"0": {}}})
    predictor = SegmentationPredictor(device=torch.device("cpu"), allow_tqdm=False)
    weights = [{name: value.clone() for name, value in network.state_dict().items()}]
    configuration = manager.get_configuration("2d")
    predictor.manual_initialization(network, manager, configuration, weights, dataset.dataset_json, "T", (0, 1))
    return predictor


def test_windows_count_by_their_part_of_the_mask(tmp_path: Path) -> None:
    """Slices are windows: each voxel of the mask counts alike, whatever slice it is in."""
    data = torch.zeros(1, 3, 32, 32)
    data[0, 0, 4:10, 4:10], data[0, 1, 4:6, 4:10] = 1.0, 1.0
    mask = data[0] > 0.5
    predictor = predictor_of(Threshold().eval(), tmp_path)
    maps = explain_preprocessed(predictor, data, subject(mask), hires_cam())
    mean = (36 + 12) / 3
    np.testing.assert_allclose(maps.trained[mask.numpy()], 3 / mean, rtol=1e-5)
    assert maps.trained[~mask.numpy()].max() == 0
    assert maps.random_head is not None and not np.allclose(maps.random_head, maps.trained)
    assert maps.random_network is not None
    loaded = predictor.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in predictor.list_of_parameters[0].items())
    with pytest.raises(ValueError, match="no mask to explain"):
        explain_preprocessed(predictor, data, subject(mask & ~mask), hires_cam())


def test_entropy_by_hand() -> None:
    labels = np.array([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]], np.float32).reshape(3, 1, 1, 2)
    np.testing.assert_allclose(predictive_entropy(labels, False)[0, 0], [1.5 * np.log(2), 0], rtol=1e-6)
    regions = np.array([[0.5, 1.0], [1.0, 0.0]], np.float32).reshape(2, 1, 1, 2)
    np.testing.assert_allclose(predictive_entropy(regions, True)[0, 0], [np.log(2), 0], rtol=1e-6)


@pytest.mark.slow
def test_integrated_gradients_of_a_mask_are_complete(nnunet_folders: Any) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainer", (0,), "checkpoint_final.pth")
    predictor = SegmentationPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model))
    network = predictor.network.eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:12, 6:14] = True
    scorer, _ = subject(mask).scorer_and_input(network, image)
    with torch.no_grad():
        expected = float(scorer(image) - scorer(torch.full_like(image, float(image.min()))))
    found = integrated_gradients(max_parts=60)(network, image, subject(mask))
    assert abs(expected) > 1e-3 and found.difference == pytest.approx(expected, rel=1e-4)
    assert float(found.attribution.sum()) == pytest.approx(expected, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_command_on_a_stock_model(
    configuration: str, nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, configuration)
    content = {key: value for key, value in dataset.dataset_json.items() if key != "classification"}
    model = save_model(replace(dataset, dataset_json=content), "nnUNetTrainer", (0,), "checkpoint_final.pth", 1.5)
    shape = (40, 36) if configuration == "2d" else (12, 20, 18)
    images, target = write_images(tmp_path / "images", shape, 2), tmp_path / "out"
    arguments = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
    assert explain_cli.explain([str(argument) for argument in [*arguments, "-method", "gradcam"]]) == 0
    printed = capsys.readouterr().out
    assert "2 cases explained" in printed and "nats of predictive entropy in the predicted mask" in printed
    (structure,) = (name for name in content["labels"] if name != "background")
    names = {f"case_{n}_{what}{ending}" for n in (0, 1) for what in (structure, "entropy") for ending in ENDINGS}
    assert {file.name for file in target.iterdir()} == {*names, "explanations.csv", "explanations.json"}
    row, _ = json.loads((target / "explanations.json").read_text())["cases"]
    assert row["structure"] == structure and 0 < row["predicted_mask_area"] <= 1 and row["predicted_mask_share"] > 0
    assert 0 < row["mean_entropy"] <= row["max_entropy"] <= np.log(2) + 1e-6
    assert all(-1 <= row[f"spearman_random_{part}"] < 0.999 for part in ("head", "network"))
    entropy = SimpleITK.ReadImage(str(target / "case_0_entropy.nii.gz"))
    assert entropy.GetSize() == shape[::-1]
    assert SimpleITK.GetArrayFromImage(entropy).max() == pytest.approx(row["max_entropy"], rel=1e-6)
    assert np.asarray(Image.open(target / f"case_0_{structure}_overlay.png")).std() > 10
    for flags, message in (
        (["--structure", "core"], f"knows no structure 'core'; choose one of {structure}"),
        (["--class", "glioma"], "the mask is to be explained, and the class 'glioma'"),
    ):
        with pytest.raises(ValueError, match=message):
            explain_cli.explain([str(argument) for argument in [*arguments, *flags]])


ENDINGS = (".nii.gz", "_overlay.png")


def test_mask_of_a_joint_model_and_nothing_predicted(nnunet_folders: Any, tmp_path: Path) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    for name, value in checkpoint["network_weights"].items():
        if ".seg_layers." in name and name.startswith("decoder"):
            value.zero_()
            if name.endswith("bias"):
                value[0] = 5.0  # nothing but background
    torch.save(checkpoint, file)
    images, target = write_images(tmp_path / "images", (32, 32), 1), tmp_path / "out"
    command = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--disable_progress_bar", "--mask"]
    assert explain_cli.explain([str(argument) for argument in command]) == 0
    (row,) = json.loads((target / "explanations.json").read_text())["cases"]
    assert row["predicted_mask_area"] == 0 and row["predicted_mask_share"] is None and row["mean_entropy"] is None
    assert row["max_entropy"] == pytest.approx(0.0402, abs=1e-3)  # of probabilities 1 / (1 + exp(-5)) and the rest
    files = {f"case_0_entropy{ending}" for ending in ENDINGS}
    assert {file.name for file in target.iterdir()} == {*files, "explanations.csv", "explanations.json"}
