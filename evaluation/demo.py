"""``braintum_demo``: the main job end to end, with the commands that a user types."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from braintum.commands.command import run_command

DATASET_ID = 999
_MARKER = ".braintum_demo"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_demo",
        description="Convert, plan, preprocess, train, predict the held-out fold and print its figures; on synthetic "
        "head phantoms, or on the Figshare data set in its original layout. Everything lands in one folder.",
    )
    parser.add_argument("--data", type=Path, help="folder of the Figshare .mat files; default: synthetic phantoms")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--fold", type=int, default=0, help="held-out fold; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=30, help="per epoch; default: %(default)s")
    parser.add_argument("--spacing", type=float, default=1.96, help="target spacing in mm; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is one")
    return parser


def demo(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_demo -h``."""
    args = build_parser().parse_args(argv)
    out = _fresh_folder(args.out.resolve())
    environment = _environment(out, args)
    device = args.device or _default_device()
    source = args.data
    if source is None:
        from braintum.conversion.sources.phantoms import write_figshare_phantoms

        _step("synthetic phantoms in Figshare's layout")
        source = out / "source"
        write_figshare_phantoms(source, n_patients=40, slices_per_patient=5)
    dataset, plans, trainer = str(DATASET_ID), "BrainTumLightPlans", "nnUNetTrainerMultiTask"
    spacing, processes = str(args.spacing), environment["nnUNet_def_n_proc"]

    def run(*command: str) -> None:
        _run(command, environment)

    run("braintum_convert", "figshare", str(source), "-d", dataset, "--name", "Demo", "-np", processes)
    run(
        *("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", "2d"),
        *("-fpe", "BrainTumFingerprintExtractor", "-pl", "BrainTumPlannerLight"),
        *("-overwrite_target_spacing", spacing, spacing, "--verify_dataset_integrity"),
        *("-npfp", processes, "-np", processes, "--no_pbar"),
    )
    run("nnUNetv2_train", dataset, "2d", str(args.fold), "-p", plans, "-tr", trainer, "-device", device)
    raw = Path(environment["nnUNet_raw"]) / f"Dataset{DATASET_ID}_Demo"
    held_out, labels = _copy_held_out_cases(raw, args.fold, out / "held_out")
    predictions = out / "predictions"
    run(
        *("braintum_predict", "-i", str(held_out), "-o", str(predictions), "-d", dataset, "-c", "2d"),
        *("-p", plans, "-tr", trainer, "-f", str(args.fold), "-device", device),
    )
    run(
        *("braintum_evaluate", "-p", str(predictions), "-g", str(labels), "--cases", str(raw / "cases.csv")),
        *("-o", str(out / "evaluation"), "-np", processes),
    )
    model = next((out / "nnUNet_results").glob("*/*"))
    print(
        f"\nmodel          {model}\n"
        f"training curve {next(model.glob('fold_*/progress.png'))}\n"
        f"segmentations  {predictions}\n"
        f"classes        {predictions / 'classes.csv'}\n"
        f"figures        {out / 'evaluation'}"
    )
    return 0


def _fresh_folder(out: Path) -> Path:
    """``out``, emptied if an earlier demonstration wrote it.

    Raises:
        ValueError: it holds something else.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise ValueError(f"{out} is not empty and was not written by braintum_demo; choose another with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    return out


def _environment(out: Path, args: argparse.Namespace) -> dict[str, str]:
    processes = str(max(1, min(4, os.cpu_count() or 1)))
    environment = {
        **os.environ,
        **{name: str(out / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_def_n_proc": processes,
        "nnUNet_n_proc_DA": processes,
        "braintum_num_epochs": str(args.epochs),
        "braintum_num_iterations_per_epoch": str(args.iterations),
        "braintum_seed": str(args.seed),
    }
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        Path(environment[name]).mkdir()
    return environment


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _step(title: str) -> None:
    print(f"\n=== {title}", flush=True)


def _run(command: tuple[str, ...], environment: dict[str, str]) -> None:
    """Run one of the commands that were installed beside this interpreter.

    Raises:
        ValueError: it failed.
    """
    _step(" ".join(command))
    started = time.monotonic()
    program = Path(sys.executable).parent / command[0]
    code = subprocess.run([str(program), *command[1:]], env=environment, check=False).returncode
    if code != 0:
        raise ValueError(f"{command[0]} failed with exit code {code}; its message is above")
    print(f"=== {command[0]} took {time.monotonic() - started:.0f} s", flush=True)


def _copy_held_out_cases(raw: Path, fold: int, target: Path) -> tuple[Path, Path]:
    """Folders of the images and of the true masks of a fold."""
    splits = json.loads((raw / "splits_final.json").read_text(encoding="utf-8"))
    if not 0 <= fold < len(splits):
        raise ValueError(f"--fold {fold}: the data has the folds 0 to {len(splits) - 1}")
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    images, labels = target / "images", target / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for case in splits[fold]["val"]:
        shutil.copy(raw / "imagesTr" / f"{case}_0000{ending}", images)
        shutil.copy(raw / "labelsTr" / f"{case}{ending}", labels)
    return images, labels


def main() -> int:
    """Console script."""
    return run_command(demo)
