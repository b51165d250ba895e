"""A folder predicted in parts: listed once, each part by its file, and tables of all of them at the end."""

from pathlib import Path
from typing import Any

import pytest
from tiny_training import save_model, write_images, write_preprocessed

from braintum.experiments import cli as experiments_cli
from braintum.inference import cli
from braintum.inference import predict_folder as predict_folder_module


@pytest.mark.slow
def test_parts_give_the_tables_of_one_run(
    nnunet_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    images = write_images(tmp_path / "images", (32, 32), num_cases=5)
    (images / "case_9_0000.nii.gz").write_bytes(b"no image")
    (images / "nameless.nii.gz").touch()
    shared = ["-i", str(images), "-m", str(model), "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
    whole, output, parts = tmp_path / "whole", tmp_path / "in parts", tmp_path / "parts"
    assert cli.predict([*shared, "-o", str(whole)]) == 3
    shared += ["-o", str(output)]
    assert cli.predict([*shared, "-num_parts", "2", "--write-parts", str(parts)]) == 0
    with monkeypatch.context() as patched:
        for name in ("find_cases", "read_case_results"):  # what lists the input and the output
            patched.setattr(predict_folder_module, name, None)
        patched.setattr(cli, "check_input", None)
        for part in sorted(parts.glob("part_?????.json")):
            assert cli.predict([*shared, "--part", str(part), "--continue_prediction"]) == 0
    assert not (output / "classes.csv").exists()
    capsys.readouterr()
    assert cli.predict([*shared, "--merge-parts", str(parts)]) == 3
    assert "5 cases listed" in capsys.readouterr().out
    for name in ("classes.csv", "left_out.json"):
        assert (output / name).read_text() == (whole / name).read_text()


def test_the_command_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], check: bool) -> Any:
        commands.append(command)
        return type("Done", (), {"returncode": 3})

    monkeypatch.setattr(cli.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    given = ["-i", "images", "-o", "out", "-m", "model", "-num_parts", "8", "-f", "0", "1", "--on", "slurm"]
    assert cli.predict([*given, "--time", "60", "--cpus", "4", "--disable_tta"]) == 3
    ((program, *command),) = commands
    assert program.endswith("braintum_run")
    args = experiments_cli.build_parser().parse_args(command)
    assert (args.command, args.on, args.num_parts, args.time, args.cpus) == ("predict", "slurm", 8, 60, 4)
    assert args.arguments == ["-i", f"{tmp_path}/images", "-m", f"{tmp_path}/model", "-f", "0", "1", "--disable_tta"]
