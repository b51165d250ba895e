"""``braintum_predict``: segmentation and tumour type of every case in a folder."""

import argparse
import logging
import os
import sys
from pathlib import Path

from braintum_commands.command import run_command
from inference.class_evidence import AGGREGATION_MODES

EXIT_SOME_CASES_FAILED = 3


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of nnUNetv2_predict."""
    parser = argparse.ArgumentParser(
        prog="braintum_predict",
        description="Predict segmentation and tumour type of every case in a folder, with nnU-Net's preprocessing, "
        "sliding window and mirroring. Writes the segmentations that nnUNetv2_predict would write, "
        "classes/<case>.json and classes.csv; with --cases also patients.csv.",
    )
    parser.add_argument("-i", required=True, metavar="INPUT", help="folder of images named CASE_0000.<ending>, …")
    parser.add_argument("-o", required=True, metavar="OUTPUT", help="output folder")
    model = parser.add_argument_group("model", "a folder (-m), or what it was trained from (-d -c)")
    model.add_argument("-m", metavar="MODEL_FOLDER", help="folder of the trained model, with plans.json and fold_X")
    model.add_argument("-d", metavar="DATASET", help="data-set name or id")
    model.add_argument("-c", metavar="CONFIGURATION", help="configuration, such as 2d or 3d_fullres")
    model.add_argument("-p", default="BrainTumPlans", help="plans identifier; default: %(default)s")
    model.add_argument("-tr", default="nnUNetTrainerMultiTask", help="trainer; default: %(default)s")
    model.add_argument(
        "-f", nargs="+", type=_fold, metavar="FOLD", help="folds to average, or all; default: all that are trained"
    )
    model.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint; default: %(default)s")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window; default: %(default)s")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--save_probabilities", action="store_true", help="also write the voxel probabilities (.npz)")
    parser.add_argument("--continue_prediction", action="store_true", help="leave complete cases alone")
    parser.add_argument("-num_parts", type=int, default=1, help="number of runs that share the folder")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "-npp", type=int, help="processes for reading, preprocessing and writing; default: 0 (threads) in 2-D, 3 in 3-D"
    )
    parser.add_argument(
        "-aggregation", default="weighted", choices=AGGREGATION_MODES, help="of class evidence; default: %(default)s"
    )
    parser.add_argument(
        "--cases",
        metavar="CASES_CSV",
        help="cases.csv with a row a case: also write patients.csv, the cases of each patient together",
    )
    parser.add_argument("--disable_progress_bar", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    return parser


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _model_folder(args: argparse.Namespace) -> Path:
    if args.m is not None:
        folder = Path(args.m)
    elif args.d is None or args.c is None:
        raise ValueError("which model? Give its folder with -m, or -d and -c (with -p and -tr where they differ)")
    else:
        from nnunetv2.paths import nnUNet_results
        from nnunetv2.utilities.file_path_utilities import get_output_folder

        if not nnUNet_results.is_set():
            raise ValueError("the environment variable nnUNet_results is not set; set it, or give the model with -m")
        folder = Path(get_output_folder(args.d, args.tr, args.p, args.c))
    if not folder.is_dir():
        raise FileNotFoundError(f"no trained model at {folder}; train it first, or check -d -tr -p -c or -m")
    return folder


def predict(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_predict -h``.

    Returns:
        0, or 3 where some cases could not be predicted.
    """
    args = build_parser().parse_args(argv)
    if not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-part_id counts from 0 to num_parts - 1 = {args.num_parts - 1}, got {args.part_id}")
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING)

    import torch  # late: "-h" and a mistyped flag should answer at once

    from inference.joint_predictor import JointPredictor
    from inference.patients import PATIENTS_FILE
    from inference.predict_folder import CLASSES_FILE, predict_folder

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device; add -device cpu")
    torch.set_num_threads((os.cpu_count() or 1) if args.device == "cpu" else 1)
    model_folder = _model_folder(args)
    predictor = JointPredictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=args.device == "cuda",
        device=torch.device(args.device),
        verbose=args.verbose,
        allow_tqdm=False,  # nnU-Net shows a bar a case; ours counts cases
    )
    predictor.initialize_from_trained_model_folder(str(model_folder), args.f, args.chk)
    num_workers = args.npp
    if num_workers is None:
        num_workers = 0 if len(predictor.configuration_manager.patch_size) == 2 else 3
    outcome = predict_folder(
        predictor,
        args.i,
        args.o,
        save_probabilities=args.save_probabilities,
        continue_prediction=args.continue_prediction,
        num_parts=args.num_parts,
        part_id=args.part_id,
        num_workers=num_workers,
        aggregation=args.aggregation,
        cases_file=args.cases,
        arguments=vars(args),
        show_progress=not args.disable_progress_bar,
    )
    skipped = f", {len(outcome.skipped)} were there already" if outcome.skipped else ""
    print(
        f"{len(outcome.predicted)} cases predicted{skipped}; {outcome.listed} listed in {Path(args.o) / CLASSES_FILE}"
    )
    if outcome.patients is not None:
        print(f"{outcome.patients} patients listed in {Path(args.o) / PATIENTS_FILE}")
    for case, fault in outcome.failed.items():
        print(f"not predicted: {case}: {fault}", file=sys.stderr)
    return EXIT_SOME_CASES_FAILED if outcome.failed else 0


def main() -> int:
    """Console script."""
    return run_command(predict)
