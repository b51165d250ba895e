"""What the documentation says to type can be typed: commands exist, and so do their options."""

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from command_pages import console_scripts, parsers
from conftest import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
PARSERS = {command: list(parsers(command)) for command in console_scripts()}


def commands_in(page: Path) -> Iterator[list[str]]:
    """Words of each command of ours or of nnU-Net's in a page's shell blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            names = [index for index, word in enumerate(words) if re.match(r"(braintum|nnUNetv2)_\w+$", word)]
            if names:
                yield words[names[0] :]


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pages_hold_commands() -> None:
    assert sum(1 for page in PAGES for _ in commands_in(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_and_options_exist(page: Path) -> None:
    installed = {script.name for script in metadata.entry_points(group="console_scripts")}
    for command, *words in commands_in(page):
        if command not in PARSERS:
            assert command in installed, f"{page.name}: no command {command}"
            continue
        known = {option for parser in PARSERS[command] for option in parser._option_string_actions}
        options = {word for word in words if re.match(r"--?[A-Za-z]", word)}
        assert options <= known, f"{page.name}: {command} has no {', '.join(sorted(options - known))}"


def test_every_option_has_a_text() -> None:
    for command, found in PARSERS.items():
        for parser in found:
            assert parser.description, command
            options = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
            assert [action.dest for action in options if not action.help] == []
