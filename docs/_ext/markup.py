"""reStructuredText of what the generated pages are made of."""

import re
from collections.abc import Sequence


def title(text: str, underline: str = "=") -> str:
    """A heading."""
    return f"{text}\n{underline * len(text)}\n\n"


def plain(text: str) -> str:
    """Text of a command line, with nothing in it read as mark-up."""
    return re.sub(r"([\\*`|_<>])", r"\\\1", text)


def indented(text: str, depth: int = 3) -> str:
    """Every line moved to the right."""
    return "".join(" " * depth + line if line.strip() else line for line in text.splitlines(keepends=True))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], widths: str = "auto") -> str:
    """A list-table; cells are mark-up."""
    lines = [".. list-table::\n", "   :header-rows: 1\n", f"   :widths: {widths}\n", "\n"]
    for row in (headers, *rows):
        for number, cell in enumerate(row):
            lines.append(f"   {'*' if number == 0 else ' '} - {indented(cell, 7).strip()}\n")
    return "".join(lines) + "\n"
