"""``braintum_predict``: segmentation and, where a model predicts it, tumour type of every case in a folder."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.commands.executor_arguments import add_executor_arguments
from braintum.commands.model_arguments import DEFAULT_CHECKPOINT, add_model_arguments, fold, model_folder
from braintum.commands.provenance import without_folders
from braintum.conversion.files.folders import holds_studies
from braintum.inference.dicom.arguments import add_archive_arguments, add_object_arguments
from braintum.inference.predict_studies import predict_studies, predict_study_of_archive
from braintum.inference.prediction.aggregation_modes import AGGREGATION_MODES
from braintum.inference.prediction.input_files import LEFT_OUT_FILE, check_folder, check_input, check_output
from braintum.inference.prediction.part_files import write_parts

MAX_NAMES = 50
"""Of more cases that were not predicted only the first are printed; `left_out.json` names all."""
_OF_STUDIES = ("channel", "series_table", "reference", "dicom", "labelmap", "pseudonymise", "store")


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of nnUNetv2_predict."""
    parser = argparse.ArgumentParser(
        prog="braintum_predict",
        description="Predict segmentation and tumour type of every image in a folder. Without a model of your own (-m, "
        "or -d and -c) a ready one predicts pictures, DICOM slices and volumes of any names; see braintum_models. With "
        "one: every case in a folder, with nnU-Net's preprocessing, sliding window and mirroring. Both take DICOM as "
        "archives export it, in a folder or a ZIP file: each study is a case, and the series of each channel is chosen "
        "by its header. Writes the segmentations that nnUNetv2_predict would write (to rounding; with "
        "--exact, the same files), classes/<case>.json and classes.csv; with --cases also patients.csv. One model does "
        "both, or a second one (--class-model) predicts the classes; a model that only segments, any of nnU-Net's own "
        "included, writes the masks alone.",
    )
    parser.add_argument(
        "-i",
        metavar="INPUT",
        help="folder of images, of your own model's named CASE_0000.<ending>, …; or DICOM studies: folder or ZIP file",
    )
    parser.add_argument("-o", metavar="OUTPUT", help="output folder")
    dicom = parser.add_argument_group("DICOM studies")
    dicom.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="where the headers do not tell: a channel of the model and the description of its series, such as "
        "T1ce='*mprage*km*', or its SeriesInstanceUID; repeat it for more",
    )
    dicom.add_argument(
        "--series-table",
        metavar="TABLE",
        help="the same for each study: CSV or Excel with a column study (StudyInstanceUID, or name of the case) and a "
        "column a channel",
    )
    dicom.add_argument("--reference", metavar="CHANNEL", help="on whose grid all is predicted; default: the first")
    add_object_arguments(dicom)
    add_archive_arguments(dicom)
    ready = parser.add_argument_group("ready model", "used where neither -m nor -d is given")
    ready.add_argument("--model", metavar="NAME", help="one of `braintum_models list`; default: braintum's own")
    ready.add_argument("--card", action="store_true", help="print what the model is, how good, and what it is not for")
    add_model_arguments(parser)
    classes = parser.add_argument_group(
        "class model", "where -m or -d names any model of nnU-Net that segments, and another predicts the classes"
    )
    classes.add_argument("--class-model", metavar="FOLDER", help="folder of a model that predicts classes")
    classes.add_argument(
        "--class-folds", nargs="+", type=fold, metavar="FOLD", help="its folds, or all; default: all that are trained"
    )
    classes.add_argument("--class-checkpoint", metavar="NAME", help=f"its checkpoint; default: {DEFAULT_CHECKPOINT}")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda, with --onnx cpu")
    parser.add_argument(
        "--onnx",
        nargs="?",
        const="onnxruntime",
        choices=("onnxruntime", "openvino"),
        help="predict what braintum_export exported, on the CPU only, with onnxruntime (the default; faster than torch "
        "in 2-D alone) or OpenVINO",
    )
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window; default: %(default)s")
    parser.add_argument(
        "--exact", action="store_true", help="nnU-Net's order of computation, whose files are nnU-Net's; slower"
    )
    parser.add_argument(
        "-precision",
        default="float32",
        choices=("auto", "float32", "bfloat16"),
        help="of the network on CPUs; auto tries bfloat16 on the first images where the processor has it, and keeps it "
        "if masks and classes agree with those of float32; default: %(default)s",
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--save_probabilities", action="store_true", help="also write the voxel probabilities (.npz)")
    parser.add_argument("--continue_prediction", action="store_true", help="leave complete cases alone")
    parser.add_argument("-num_parts", type=int, default=1, help="number of runs that share the folder")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "-npp",
        type=int,
        default=0,
        help="processes for reading, preprocessing and writing; default: 0, threads",
    )
    parser.add_argument(
        "-aggregation", default="weighted", choices=AGGREGATION_MODES, help="of class evidence; default: %(default)s"
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="apply what braintum_calibrate stored in the model: calibrated probabilities, uncertain cases, expected "
        "Dice, class sets, intervals of the size, and which cases to review",
    )
    parser.add_argument(
        "--bounds",
        action="store_true",
        help="with --calibrated: also write masks that miss little of a tumour (outer/) and that hold little else "
        "(inner/)",
    )
    parser.add_argument(
        "--cases",
        metavar="CASES_CSV",
        help="cases.csv with a row a case: also write patients.csv, the cases of each patient together",
    )
    parser.add_argument(
        "--not-needed",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="other images in INPUT, such as '*_seg.nii.gz' or 'screenshots/*', of which nothing is to be said",
    )
    parser.add_argument(
        "--resample-to",
        metavar="CHANNEL",
        help="where the files of a case lie on grids of their own: bring them on that of this channel, by the headers; "
        "the mask lies on it, too",
    )
    add_executor_arguments(parser)
    parser.set_defaults(on=None)
    parts = parser.add_argument_group("parts", "what jobs of --on run; the input folder is listed once for all of them")
    parts.add_argument("--write-parts", type=Path, metavar="FOLDER", help="only list the input, in -num_parts files")
    parts.add_argument("--part", type=Path, metavar="FILE", help="predict what one of these files lists, no tables")
    parts.add_argument("--merge-parts", type=Path, metavar="FOLDER", help="only write the tables of all parts")
    parser.add_argument("--disable_progress_bar", action="store_true", help="for log files")
    parser.add_argument("--verbose", action="store_true", help="also print what the steps in between report")
    return parser


def check_onnx(args: argparse.Namespace) -> None:
    """Choose the device, and refuse what exported networks cannot do.

    Raises:
        ValueError: ``--onnx`` with another device, in another precision, or with nnU-Net's order of computation.
    """
    args.device = args.device or ("cpu" if args.onnx else "cuda")
    if not args.onnx:
        return
    if args.device != "cpu":
        raise ValueError(f"--onnx predicts on the CPU, not on {args.device}; leave -device away, or --onnx")
    if args.exact:
        raise ValueError("--exact is nnU-Net's computation by torch, --onnx another; leave one of them away")
    if args.onnx == "onnxruntime":
        if args.precision == "bfloat16":
            raise ValueError("onnxruntime computes in float32; leave -precision away, or add --onnx openvino")
        args.precision = "float32"


def predict(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_predict -h``.

    Returns:
        0, or 3 where some cases could not be predicted.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    has_own_model = any(value is not None for value in (args.m, args.d, args.c, args.class_model))
    if has_own_model and (args.model is not None or args.card):
        raise ValueError("--model and --card are about ready models; leave them, or -m, -d and -c, away")
    if args.card:
        return _print_card(args.model)
    if args.i is None or args.o is None:
        parser.error("the following arguments are required: -i, -o")
    if args.dicomweb is not None:
        return predict_study_of_archive(args, has_own_model, _predict_files)
    check_output(Path(args.o), Path(args.i))
    if args.on is not None:
        return predict_in_jobs(sys.argv[1:] if argv is None else argv)
    if holds_studies(Path(args.i)):
        return predict_studies(args, has_own_model, _predict_files)
    if given := [option for option in _OF_STUDIES if getattr(args, option) not in (None, False, [])]:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise ValueError(f"{args.i} holds no DICOM studies, which {options} is about")
    return _predict_files(args, has_own_model)


def _predict_files(args: argparse.Namespace, has_own_model: bool) -> int:
    """Predict a folder of images with a ready model or one's own."""
    if not has_own_model:
        if args.resample_to is not None:
            raise ValueError("--resample-to is for models of several channels; ready models take one: leave it away")
        return _predict_with_ready_model(args)
    if not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-part_id counts from 0 to num_parts - 1 = {args.num_parts - 1}, got {args.part_id}")
    if args.class_model is None and (args.class_folds is not None or args.class_checkpoint is not None):
        raise ValueError("--class-folds and --class-checkpoint choose within a class model; name it with --class-model")
    if args.bounds and not args.calibrated:
        raise ValueError("--bounds are of a calibrated model; add --calibrated")
    check_onnx(args)
    check_folder(Path(args.i))
    folder = model_folder(args)
    if args.write_parts is not None:
        print(f"{write_parts(args.write_parts, Path(args.i), folder, args.num_parts)} cases in {args.num_parts} parts")
        return 0
    if args.merge_parts is not None:
        from braintum.inference.predict_folder import CLASSES_FILE, merge_parts

        listed, failed = merge_parts(args.merge_parts, Path(args.o), Path(args.i), args.cases)
        print(f"{listed} cases listed in {Path(args.o) / CLASSES_FILE}")
        return _exit_code(failed, Path(args.o))
    if args.part is None:
        check_input(Path(args.i), folder)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("braintum.inference.prediction.precision").setLevel(logging.INFO)  # in which precision, and why

    from braintum.inference.prediction.devices import (
        prepare_device,  # late: "-h" and a mistyped flag should answer at once
    )

    loading: dict[str, Any] = {
        "device": prepare_device(args.device),
        "step_size": args.step_size,
        "mirroring": not args.disable_tta,
        "onnx": args.onnx,
        "trust_checkpoint": args.trust_checkpoint,
        "verbose": args.verbose,
    }

    from braintum.inference.api import load_predictor, predict_folder
    from braintum.inference.models.volume_orientation import orientation_warning
    from braintum.inference.predict_folder import CLASSES_FILE
    from braintum.inference.results.patients import PATIENTS_FILE, TIME_POINTS_FILE

    class_model = None
    if args.class_model is not None:
        args.class_checkpoint = args.class_checkpoint or DEFAULT_CHECKPOINT
        class_model = load_predictor(
            args.class_model, folds=args.class_folds, checkpoint=args.class_checkpoint, classes=True, **loading
        )
    own_classes = None if class_model is None else False
    model = load_predictor(folder, folds=args.f, checkpoint=args.chk, classes=own_classes, **loading)
    if args.onnx == "onnxruntime" and len(model.configuration_manager.patch_size) == 3:
        print("warning: in 3-D, torch and OpenVINO take less time than onnxruntime: --onnx openvino", file=sys.stderr)
    if (warning := orientation_warning(model.plans_manager)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    outcome = predict_folder(
        args.i,
        args.o,
        model,
        class_model=class_model,
        save_probabilities=args.save_probabilities,
        calibrated=args.calibrated,
        bounds=args.bounds,
        continue_prediction=args.continue_prediction,
        num_parts=args.num_parts,
        part_id=args.part_id,
        num_workers=args.npp,
        aggregation=args.aggregation,
        cases=args.cases,
        exact=args.exact,
        precision=args.precision,
        not_needed=args.not_needed,
        resample_to=args.resample_to,
        show_progress=not args.disable_progress_bar,
        part_file=args.part,
        arguments={name: without_folders(str(x)) if isinstance(x, str | Path) else x for name, x in vars(args).items()},
    )
    skipped = f", {len(outcome.skipped)} were there already" if outcome.skipped else ""
    if args.part is not None:
        print(f"{len(outcome.predicted)} cases predicted{skipped}, {len(outcome.failed)} could not be")
        return 0
    where = f"{outcome.listed} listed in {Path(args.o) / CLASSES_FILE}"
    if class_model is None and not model.predicts_classes:
        where = f"masks only, as {model.trainer_name} trains no classes; they are in {args.o}"
    print(f"{len(outcome.predicted)} cases predicted{skipped}; {where}")
    if outcome.patients is not None:
        print(f"{outcome.patients} patients listed in {Path(args.o) / PATIENTS_FILE}")
    if (file := Path(args.o) / TIME_POINTS_FILE).is_file():
        print(f"volumes over time are in {file}")
    for case, warnings in outcome.warnings.items():
        print(f"warning: {case}: {'; '.join(warnings)}", file=sys.stderr)
    return _exit_code(outcome.failed, Path(args.o))


def predict_in_jobs(argv: list[str]) -> int:
    """Hand over to ``braintum_run predict``: it runs this command for each part.

    Args:
        argv: of this command.

    Returns:
        The exit code of that command.
    """
    theirs = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_executor_arguments(theirs)
    theirs.set_defaults(on=argparse.SUPPRESS)
    for option in ("-o", "-num_parts", "-device"):
        theirs.add_argument(option)
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in ("-i", "-m", "--class-model", "--cases"):  # jobs may run in another folder
        ours.add_argument(option, type=lambda text: str(Path(text).absolute()))
    chosen, rest = theirs.parse_known_args(argv)
    paths, rest = ours.parse_known_args(rest)
    command = [str(Path(sys.executable).parent / "braintum_run"), "predict"]
    for name, value in vars(chosen).items():
        dash = "-" if name in ("o", "num_parts", "device") else "--"
        command += [f"{dash}{name if dash == '-' else name.replace('_', '-')}", str(value)]
    command.append("--")
    for name, value in vars(paths).items():
        command += [f"{'-' if len(name) == 1 else '--'}{name.replace('_', '-')}", value]
    return subprocess.run([*command, *rest], check=False).returncode


def _exit_code(failed: Mapping[str, str], output: Path) -> int:
    """Says what was not predicted."""
    for name, fault in list(failed.items())[:MAX_NAMES]:
        print(f"not predicted: {name}: {fault}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} cases or images were not predicted; all are listed in {output / LEFT_OUT_FILE}",
            file=sys.stderr,
        )
    return EXIT_SOME_FAILED if failed else 0


def _print_card(name: str | None) -> int:
    from braintum.inference.ready.card import card_text
    from braintum.inference.ready.zoo import ready_model

    print(card_text(ready_model(name).card))
    return 0


def _predict_with_ready_model(args: argparse.Namespace) -> int:
    """Masks, types and pictures of one's own images."""
    from braintum.inference.ready.own_images import find_images

    find_images(Path(args.i))  # before torch is imported
    from braintum.inference.ready.predict_images import CLASSES_FILE, OVERLAYS_FOLDER, summary
    from braintum.inference.ready_models import predict_with_ready_model

    model, outcome = predict_with_ready_model(
        args.i,
        args.o,
        args.model,
        device=args.device,
        mirroring=not args.disable_tta,
        precision=args.precision,
        not_needed=args.not_needed,
    )
    for result in outcome.results:
        print(summary(result))
        for warning in result["warnings"]:
            print(f"  warning: {warning}")
    if any(result["volume_unit"] == "mm3" for result in outcome.results):
        print("The model is 2-D: volumes are predicted slice by slice, none sees its neighbours")
    print(
        f"\n{len(outcome.results)} images predicted by {model.name} {model.card['version']}; masks are in {args.o}, "
        f"pictures in {Path(args.o) / OVERLAYS_FOLDER}, a table in {Path(args.o) / CLASSES_FILE}.\n"
        "Research software, not a medical device; what the model is good for: braintum_predict --card"
    )
    return _exit_code(outcome.failed, Path(args.o))


def main() -> int:
    """Console script."""
    return run_command(predict)
