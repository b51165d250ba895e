"""Sphinx extension: writes the pages that come from the code before anything is read."""

from pathlib import Path
from typing import Any

from code_pages import internals_pages, map_page, python_api_page
from command_pages import command_page, console_scripts
from environment_page import environment_page
from markup import title
from sphinx.application import Sphinx
from trainer_page import trainer_page


def pages() -> dict[str, str]:
    """Name of each page below ``reference/generated``, and its text."""
    commands = sorted(console_scripts())
    toc = "".join(f"   {command}\n" for command in commands)
    return {
        "commands/index": title("Commands") + f".. toctree::\n   :maxdepth: 1\n\n{toc}",
        **{f"commands/{command}": command_page(command) for command in commands},
        "environment": environment_page(),
        "trainers": trainer_page(),
        "python": python_api_page(),
        "map": map_page(),
        **{f"internals/{name}": text for name, text in internals_pages().items()},
    }


def write_pages(app: Sphinx) -> None:
    """Write what has changed, remove what is no more."""
    folder = Path(app.srcdir) / "reference" / "generated"
    wanted = {folder / f"{name}.rst": text for name, text in pages().items()}
    for path in folder.rglob("*.rst"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
