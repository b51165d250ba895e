"""``braintum_models``: models that come trained."""

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from braintum.commands.command import add_command, run_command
from braintum.commands.model_arguments import fold


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_models",
        description="Models that come trained, for braintum_predict -i IMAGES -o OUTPUT [--model NAME].",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_command(commands, "list", "all of them")
    show = add_command(commands, "show", "the card of a model: data, licences, figures, what it is not for")
    show.add_argument("name", nargs="?", metavar="NAME", help="default: the model that predicts by default")
    install = add_command(commands, "install", "a model that somebody exported; nothing in the file is run")
    install.add_argument("file", type=Path, metavar="FILE.zip", help="what `export` wrote")
    export = add_command(commands, "export", "a model into one file")
    export.add_argument("name", metavar="NAME", help="of the model")
    export.add_argument("file", type=Path, metavar="FILE.zip", help="to write")
    pack = add_command(commands, "pack", "make a ready model of one that you trained")
    pack.add_argument("-m", type=Path, required=True, metavar="MODEL_FOLDER", help="with plans.json and fold_X")
    pack.add_argument("-f", type=fold, default="all", metavar="FOLD", help="default: %(default)s")
    pack.add_argument("--card", type=Path, required=True, metavar="CARD.json", help="as `show --json` prints them")
    pack.add_argument(
        "--preprocessed", type=Path, metavar="FOLDER", help="of nnU-Net, with the training images: what suits the model"
    )
    pack.add_argument("-o", type=Path, metavar="FOLDER", help="default: where models are installed")
    show.add_argument("--json", action="store_true", help="the card as it is stored")
    return parser


def models(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_models -h``."""
    args = build_parser().parse_args(argv)
    from braintum.inference.ready import zoo  # late: "-h" should answer at once
    from braintum.inference.ready.card import card_text

    if args.command == "list":
        rows = [
            [
                model.name,
                model.card["version"],
                ", ".join(model.card["classes"]),
                f"{model.num_bytes / 1e6:.1f} MB",
                "braintum" if model.is_shipped else str(model.folder),
            ]
            for model in zoo.ready_models()
        ]
        print(tabulate(rows, ["model", "version", "classes", "size", "from"]))
    elif args.command == "show":
        card = zoo.ready_model(args.name).card
        print(json.dumps(card, indent=2) if args.json else card_text(card))
    elif args.command == "install":
        installed = zoo.install(args.file)
        print(f"installed {installed.name} into {installed.folder}; what it is: braintum_models show {installed.name}")
    elif args.command == "export":
        zoo.export(zoo.ready_model(args.name), args.file)
        print(f"wrote {args.file}")
    else:
        from braintum.inference.ready_models import pack_trained

        print(f"packed {pack_trained(args.m, args.f, args.card, args.preprocessed, args.o)}")
    return 0


def main() -> int:
    """Console script."""
    return run_command(models)
