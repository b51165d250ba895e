"""The arguments by which every command names a trained model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

DEFAULT_CHECKPOINT = "checkpoint_final.pth"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, the short ones named as those of nnUNetv2_predict; see :func:`model_folder`."""
    model = parser.add_argument_group("model", "a folder (-m), or what it was trained from (-d -c)")
    model.add_argument("-m", metavar="MODEL_FOLDER", help="folder of the trained model, with plans.json and fold_X")
    model.add_argument("-d", metavar="DATASET", help="data-set name or id")
    model.add_argument("-c", metavar="CONFIGURATION", help="configuration, such as 2d or 3d_fullres")
    model.add_argument("-p", default="BrainTumPlans", help="plans identifier; default: %(default)s")
    model.add_argument("-tr", default="nnUNetTrainerMultiTask", help="trainer; default: %(default)s")
    model.add_argument(
        "-f", nargs="+", type=fold, metavar="FOLD", help="folds to average, or all; default: all that are trained"
    )
    model.add_argument("-chk", default=DEFAULT_CHECKPOINT, help="checkpoint; default: %(default)s")
    model.add_argument(
        "--trust-checkpoint", action="store_true", help="load checkpoints that run code; know who made them"
    )


def fold(text: str) -> int | str:
    """A fold of the command line."""
    return text if text == "all" else int(text)


def held_out_fold(text: str) -> int:
    """A fold of the command line that has held-out cases.

    Raises:
        argparse.ArgumentTypeError: it is no number.
    """
    if text.isdecimal():
        return int(text)
    if text == "all":
        raise argparse.ArgumentTypeError(
            "fold_all is trained on every case, so none is held out: leave -f away for all numbered folds that are "
            "validated, or predict other cases and evaluate those (braintum_predict, braintum_evaluate -p -g)"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is no number of a fold")


def model_folder(args: argparse.Namespace) -> Path:
    """The folder of the model that the arguments name.

    Raises:
        ValueError: they name none.
        FileNotFoundError: it does not exist.
    """
    if args.m is not None:
        folder = Path(args.m)
    elif args.d is None or args.c is None:
        raise ValueError("which model? Give its folder with -m, or -d and -c (with -p and -tr where they differ)")
    else:
        folder = results_folder(args.d, args.tr, args.p, args.c, "set it, or give the model with -m")
    if not folder.is_dir():
        raise no_model_at([folder], "train it first, or check -d -tr -p -c or -m")
    return folder


def no_model_at(folders: Sequence[Path], remedy: str) -> FileNotFoundError:
    """The error where none of some model folders exists; it lists the models that are beside them.

    Args:
        folders: that were looked for.
        remedy: what to check.
    """
    there = sorted({path for folder in folders for path in folder.parent.glob("*__*__*") if path.is_dir()})
    described = ["-tr {} -p {} -c {}".format(*path.name.split("__", 2)) for path in there]
    listed = f"; there are: {', '.join(described)}" if described else f", nor any other in {folders[0].parent}"
    return FileNotFoundError(f"no trained model at {', '.join(map(str, folders))}{listed}; {remedy}")


def dataset_name(dataset: int | str) -> str:
    """The whole name of a data set, such as ``Dataset042_Name``.

    Args:
        dataset: its number or name.

    Raises:
        ValueError: nnU-Net's folders hold none of this number, or several.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def results_folder(
    dataset: str, trainer: str, plans: str, configuration: str, remedy: str = "set it to where the models are"
) -> Path:
    """Where nnU-Net puts a model, which may not be there.

    Raises:
        ValueError: ``nnUNet_results`` is not set, the message then ends with the remedy; or no such data set.
    """
    from nnunetv2.paths import nnUNet_results
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    if not nnUNet_results.is_set():
        raise ValueError(f"the environment variable nnUNet_results is not set; {remedy}")
    return Path(get_output_folder(dataset_name(dataset), trainer, plans, configuration))
