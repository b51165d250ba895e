"""Plans, data-set files and zip files of strangers: nothing in them is run, and no size is believed."""

import copy
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from tiny_training import PLAN_2D
from torch import nn

from braintum.inference.model_zip_cli import install
from braintum.inference.models.model_files import (
    ALLOWED_CLASSES_VARIABLE,
    check_size,
    checked_configuration,
    read_dataset_json,
    read_plans,
)
from braintum.inference.models.model_zip import install_model

MODEL = "Dataset007_Tiny/nnUNetTrainerMultiTask__BrainTumPlans__2d"
DATASET = {
    "channel_names": {"0": "T1ce"},
    "labels": {"background": 0, "tumour": 1},
    "file_ending": ".png",
    "classification": {"class_names": ["glioma", "meningioma"]},
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset007_Tiny",
    "plans_name": "BrainTumPlans",
    "image_reader_writer": "NaturalImage2DIO",
    "label_manager": "LabelManager",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {
        "2d": {
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [32, 32],
            "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            **{f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")},
            **{f"resampling_fn_{kind}_kwargs": {"order": 1} for kind in ("data", "seg", "probabilities")},
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": PLAN_2D.arch_kwargs,
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        },
        "2d_child": {"inherits_from": "2d", "batch_size": 3},
        "2d_loop": {"inherits_from": "2d_loop"},
    },
}


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at ``a/b/c``; None removes it."""
    content = copy.deepcopy(content)
    *parents, last = path.split("/")
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return content


def plans_file(folder: Path, content: Any) -> Path:
    file = folder / "plans.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_honest_plans_pass(tmp_path: Path) -> None:
    file = plans_file(tmp_path, PLANS)
    plans = read_plans(file)
    for name, batch_size in (("2d", 2), ("2d_child", 3)):
        assert checked_configuration(plans, name, file).batch_size == batch_size


@pytest.mark.parametrize("name", ["2d_loop", "3d_fullres"])
def test_configuration_that_is_none(tmp_path: Path, name: str) -> None:
    file = plans_file(tmp_path, PLANS)
    with pytest.raises(ValueError, match=f"plans.json: configuration {name}"):
        checked_configuration(read_plans(file), name, file)


ARCHITECTURE = "configurations/2d/architecture"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{ARCHITECTURE}/network_class_name", "os.system", "names 'os.system' as a part of the network"),
        (f"{ARCHITECTURE}/network_class_name", "torch.nn.Linear", "names 'torch.nn.Linear'"),
        (
            f"{ARCHITECTURE}/network_class_name",
            "braintum.architectures.networks.multi_task_unet.stock_counterpart",
            "no network and no",
        ),
        (f"{ARCHITECTURE}/network_class_name", "braintum.architectures.no.Network", "no network and no"),
        (f"{ARCHITECTURE}/network_class_name", "architectures.weights.store.os.system", "there is no such class"),
        (f"{ARCHITECTURE}/network_class_name", "os.system('ls')", "does not match"),
        (f"{ARCHITECTURE}/arch_kwargs/conv_op", "subprocess.Popen", "names 'subprocess.Popen'"),
        (f"{ARCHITECTURE}/arch_kwargs/conv_op", "torch.nn.functional.conv2d", "no network and no layer"),
        (f"{ARCHITECTURE}/arch_kwargs/conv_op", "torch.nn.no_such_thing", "no network and no layer"),
        (f"{ARCHITECTURE}/arch_kwargs/conv_op", 7, "names 7"),
        (f"{ARCHITECTURE}/arch_kwargs/features_per_stage", [10**9] * 4, "arch_kwargs.features_per_stage"),
        (f"{ARCHITECTURE}/arch_kwargs/n_stages", 1e300, "arch_kwargs.n_stages"),
        (f"{ARCHITECTURE}/_kw_requires_import", ["conv_op"] * 1000, "_kw_requires_import"),
        ("configurations/2d/patch_size", [10**6, 10**6], "patch_size"),
        ("configurations/2d/patch_size", [32, 32, 32], "differ in dimensions"),
        ("configurations/2d/patch_size", [32, "32"], "patch_size"),
        ("configurations/2d/spacing", [0.0, 1.0], "spacing"),
        ("configurations/2d/normalization_schemes", ["../evil"], "normalization_schemes"),
        ("configurations/2d/resampling_fn_data", "os", "resampling_fn_data"),
        ("configurations/2d/preprocessor_name", "a.b", "preprocessor_name"),
        ("image_reader_writer", "__import__('os')", "image_reader_writer"),
        ("transpose_forward", [0, 0, 1], "transpose_forward"),
        ("configurations", {}, "configurations"),
        ("classification", {"class_names": "glioma"}, "class_names"),
    ],
)
def test_plans_are_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = plans_file(tmp_path, changed(PLANS, path, value))
    with pytest.raises(ValueError, match="plans.json") as raised:
        checked_configuration(read_plans(file), "2d", file)
    assert message in str(raised.value)


def test_class_of_the_user_is_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plans_file(tmp_path, changed(PLANS, f"{ARCHITECTURE}/network_class_name", "my.Network"))
    with pytest.raises(ValueError, match=f"{ALLOWED_CLASSES_VARIABLE}=my.Network"):
        checked_configuration(read_plans(file), "2d", file)
    monkeypatch.setenv(ALLOWED_CLASSES_VARIABLE, "other.Network, my.Network")
    checked_configuration(read_plans(file), "2d", file)


def test_network_that_moved_is_left_to_nnunet(tmp_path: Path) -> None:
    old = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
    file = plans_file(tmp_path, changed(PLANS, f"{ARCHITECTURE}/network_class_name", old))
    checked_configuration(read_plans(file), "2d", file)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "[" * 100_000, '{"a": NaN}', "\x00"])
def test_damaged_plans(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="plans.json"):
        read_plans(plans_file(tmp_path, content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("labels", {"background": 0}),
        ("labels", {"background": 0, "tumour": "1"}),
        ("labels", {"background": 0, "tumour": 10**9}),
        ("file_ending", "/../../x"),
        ("channel_names", {}),
        ("classification", {"class_names": [1, 2]}),
        ("regions_class_order", [[1]]),
    ],
)
def test_dataset_json_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(changed(DATASET, path, value)))
    with pytest.raises(ValueError, match=f"dataset.json.*{path.split('/')[0]}"):
        read_dataset_json(file)


def test_network_too_large_is_never_built() -> None:
    def giant() -> nn.Module:
        return nn.Linear(2**20, 2**20)

    with pytest.raises(ValueError, match="plans.json: its network has 1099512676352 parameters"):
        check_size(giant, "plans.json")
    check_size(lambda: nn.Linear(2, 2), "plans.json")


def test_network_that_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="plans.json: its network cannot be built"):
        check_size(lambda: PlainConvUNet(input_channels=1), "plans.json")  # type: ignore[call-arg]


# ---------------------------------------------------------------------- zip files


def write_zip(file: Path, **more: bytes | str) -> Path:
    """A zip file as nnU-Net exports a model."""
    checkpoint = file.with_suffix(".pth")
    content = {"network_weights": {"w": torch.ones(2)}, "trainer_name": "T", "init_args": {"configuration": "2d"}}
    torch.save(content, checkpoint)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{MODEL}/plans.json", json.dumps(PLANS))
        archive.writestr(f"{MODEL}/dataset.json", json.dumps(DATASET))
        archive.write(checkpoint, f"{MODEL}/fold_0/checkpoint_final.pth")
        for name, bytes_or_text in more.items():
            archive.writestr(name, bytes_or_text)
    return file


def test_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_zip(tmp_path / "model.zip", **{f"{MODEL}/crossval/postprocessing.pkl": b"run me"})
    assert install([str(archive), "-o", str(tmp_path / "results")]) == 0
    folder = tmp_path / "results" / MODEL
    assert capsys.readouterr().out == f"installed {folder}\n"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["dataset.json", "fold_0/checkpoint_final.pth", "plans.json"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["Dataset007_Tiny"]
    with pytest.raises(FileExistsError, match="there already"):
        install_model(archive, tmp_path / "results")


def test_names_of_cases_in_a_model_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("C:\\\\data\\\\Doe_Jane.nii.gz", "/data/case_0123456789abcdef.nii.gz", "/data/Roe.png")
    summaries = {
        f"{MODEL}/fold_{fold}/validation/summary.json": f'{{"metric_per_case": [{{"prediction_file": "{file}"}}]}}'
        for fold, file in enumerate(files)
    }
    archive = write_zip(tmp_path / "model.zip", **summaries)
    assert install([str(archive), "-o", str(tmp_path / "results")]) == 0
    assert "names 2 cases of its training, such as Doe_Jane (validation/summary.json)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", f"{MODEL}/../../../evil", "C:/evil/a/b", f"{MODEL}\\..\\evil", "evil", "Dataset1/a/b"]
)
def test_zip_that_writes_elsewhere(tmp_path: Path, name: str) -> None:
    archive = write_zip(tmp_path / "model.zip", **{name: "x"})
    with pytest.raises(ValueError, match="model.zip: .*nothing was unpacked"):
        install_model(archive, tmp_path / "results")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "model.zip"]


def test_zip_with_a_link(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "model.zip")
    link = zipfile.ZipInfo(f"{MODEL}/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(link, "/etc")
    with pytest.raises(ValueError, match="is a link or a device"):
        install_model(archive, tmp_path / "results")


def test_zip_bomb(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "model.zip", **{f"{MODEL}/fold_0/zeros": bytes(20 * 2**20)})
    with pytest.raises(ValueError, match="claims to unpack to"):
        install_model(archive, tmp_path / "results")


@pytest.mark.parametrize("keep", [0, 30, 0.5, 0.99])
def test_truncated_zip(tmp_path: Path, keep: float) -> None:
    archive = write_zip(tmp_path / "model.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ValueError, match=r"model.zip is no zip file, or damaged"):
        install_model(archive, tmp_path / "results")


def test_zip_whose_model_would_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made by the model"),)

    torch.save(Payload(), tmp_path / "evil.pth")
    archive = write_zip(
        tmp_path / "model.zip", **{f"{MODEL}/fold_1/checkpoint_final.pth": (tmp_path / "evil.pth").read_bytes()}
    )
    with pytest.raises(ValueError, match="would run code"):
        install_model(archive, tmp_path / "results")
    assert not (tmp_path / "made by the model").exists()
    assert not list((tmp_path / "results").iterdir())
