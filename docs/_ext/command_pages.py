"""A page for every console script of setup.cfg, from its parser; an option without a help text is an error."""

import argparse
import configparser
import importlib
from collections.abc import Iterator
from pathlib import Path

from markup import indented, plain, title

REPOSITORY = Path(__file__).resolve().parents[2]


def console_scripts() -> dict[str, str]:
    """Module of each command."""
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / "setup.cfg")
    lines = metadata["options.entry_points"]["console_scripts"].strip().splitlines()
    pairs = (line.replace(" ", "").split("=") for line in lines)
    return {name: target.partition(":")[0] for name, target in pairs}


def parsers(command: str) -> Iterator[argparse.ArgumentParser]:
    """The parser of a command, and those of its sub-commands."""
    parser = importlib.import_module(console_scripts()[command]).build_parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def command_page(command: str) -> str:
    """The page.

    Raises:
        ValueError: an option has no help text.
    """
    first, *others = parsers(command)
    return title(command) + _body(first) + "".join(title(other.prog, "-") + _body(other) for other in others)


def _body(parser: argparse.ArgumentParser) -> str:
    parts = [f"{plain(parser.description or '')}\n\n", ".. code-block:: text\n\n"]
    parts += [indented(parser.format_usage()), f"\n.. program:: {parser.prog}\n\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        parts.append(f".. rubric:: {plain(group.title or '')}\n\n")
        if group.description:
            parts.append(f"{plain(group.description)}\n\n")
        parts += [_entry(parser, action) for action in actions]
    return "".join(parts)


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One option or argument; the kinds of a command, with a line each."""
    if isinstance(action, argparse._SubParsersAction):
        lines = (f"- ``{choice.dest}``: {plain(choice.help or '')}\n" for choice in action._choices_actions)
        return "".join(lines) + "\n"
    formatter = parser._get_formatter()
    value = "" if action.nargs == 0 else " " + formatter._format_args(action, _metavar(action))
    name = ", ".join(f"{option}{value}" for option in action.option_strings) or value.strip()
    if not action.help:
        raise ValueError(f"{parser.prog}: {name} has no help text")
    needed = "needed; " if action.required and action.option_strings else ""
    return f".. option:: {name}\n\n   {plain(needed + formatter._expand_help(action))}\n\n"


def _metavar(action: argparse.Action) -> str:
    return action.dest.upper() if action.option_strings else action.dest
