"""``braintum_register``: make braintum's planners, trainers and other classes visible to nnU-Net's commands."""

import argparse
import sys
from collections.abc import Sequence

from braintum.commands import registration
from braintum.commands.command import run_command
from braintum.commands.version import check_nnunet_version

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see ``braintum_register --help``."""
    return run_command(_register, argv, needs_nnunet=False)  # --undo has to work with any nnU-Net


def _register(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.undo:
        return _undo()
    check_nnunet_version()
    return _check() if arguments.check else _write()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_register",
        description="Make braintum's planners, trainers and other classes visible to nnU-Net's commands. nnU-Net looks "
        "for classes in its own folders only, so this writes five small modules into them. Every other braintum "
        "command does the same when it finds them missing.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--undo", action="store_true", help="remove these modules again; nothing else is touched")
    what.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a module is missing or outdated"
    )
    return parser


def _write() -> int:
    written = registration.register()
    if not written:
        print(f"Nothing to do: already registered with nnU-Net in {registration.status().folder}")
        return 0
    print("Registered with nnU-Net. Files written:")
    for path in written:
        print(f"  {path}")
    print("Undo with: braintum_register --undo")
    return 0


def _check() -> int:
    current = registration.status()
    for shim in current.shims:
        print(f"{shim.state:9}{shim.path}{'' if shim.writable else '  (no permission to write there)'}")
    return 0 if current.complete else 1


def _undo() -> int:
    removed = registration.unregister()
    if not removed:
        print("Nothing to do: nnU-Net's folders hold no file of braintum")
        return 0
    print("Files removed:")
    for path in removed:
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
