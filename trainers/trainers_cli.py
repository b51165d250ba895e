"""``braintum_trainers``: the trainers that ``nnUNetv2_train -tr`` takes, with network, task, defaults and paper."""

import argparse
import json
from os.path import commonprefix

from tabulate import tabulate

from braintum.commands.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_trainers",
        description="List braintum's trainers with network, task, defaults and paper of each, read from the classes "
        "themselves. A network whose name ends in … is the plans' own with what stands before it.",
    )
    parser.add_argument(
        "--pairs", action="store_true", help="the names of all trainers that have another recipe than their own"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, with the summary of each trainer")
    return parser


def trainers(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_trainers -h``."""
    args = build_parser().parse_args(argv)

    from braintum.trainers import registered  # late: "-h" should answer at once
    from braintum.trainers.descriptions import describe_recipes, describe_trainers

    if args.pairs:
        print("\n".join(registered.pairs()))
        return 0
    rows = [description.row() for description in describe_trainers()]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        networks = str(row.pop("network")).split(", ")
        row["network"] = networks[0] if len(networks) == 1 else f"{commonprefix(networks)}…"
    columns = ["trainer", "network", "task", "configurations", "epochs", "optimiser", "learning rate", "loss", "paper"]
    print(tabulate([[row[column] for column in columns] for row in rows], columns, maxcolwidths=[None] * 7 + [30, 16]))
    print(
        "\nAny trainer follows any of these recipes as <trainer>_<recipe>, such as nnUNetTrainerUNet_ResSELKA, but "
        "those that learn without labels or in two stages (--pairs lists all):\n"
    )
    print(tabulate(describe_recipes(), "keys"))
    return 0


def main() -> int:
    """Console script."""
    return run_command(trainers)
