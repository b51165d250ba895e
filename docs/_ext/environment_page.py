"""The page of environment variables, from the docstrings beside them; a variable without one is an error."""

import ast
import re
from functools import cache

from command_pages import REPOSITORY, console_scripts
from markup import indented, title

NO_VARIABLES = {"braintum_decisions", "braintum_version"}
"""Entries of plans and summaries that are spelled alike."""

_PREFIX = "Environment variable: "
_NAME = re.compile(r"braintum_[a-z_]+")
_ATTRIBUTE = re.compile(r"^\w+: ``(braintum_[a-z_]+)``: (.*(?:\n .*)*)", re.MULTILINE)


@cache
def sources() -> tuple[ast.Module, ...]:
    """Source files of the package that name a variable."""
    folders = [part for part in (REPOSITORY / "braintum").iterdir() if part.is_dir()]
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    return tuple(ast.parse(text) for text in texts if "braintum_" in text)


def names_in_code() -> set[str]:
    """Every text in the code that is spelled as a variable, without commands and :data:`NO_VARIABLES`."""
    found = {
        node.value
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value)
    }
    return found - NO_VARIABLES - console_scripts().keys()


def documented() -> dict[str, str]:
    """Variable → what it means.

    Read are the attributes of a class whose text begins with the variable, and the text below a constant that holds it.
    """
    found = {}
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                attributes = re.sub(r"^ {4}", "", ast.get_docstring(node) or "", flags=re.MULTILINE)
                found.update(_ATTRIBUTE.findall(attributes))
        for constant, text in zip(tree.body, tree.body[1:], strict=False):
            match constant, text:
                case (
                    ast.Assign(value=ast.Constant(value=str(name))),
                    ast.Expr(value=ast.Constant(value=str(meaning))),
                ) if _NAME.fullmatch(name) and meaning.startswith(_PREFIX):
                    found[name] = meaning.removeprefix(_PREFIX)
    return {name: " ".join(text.split()) for name, text in sorted(found.items())}


def environment_page() -> str:
    """The page.

    Raises:
        ValueError: the code reads a variable that nothing describes.
    """
    texts = documented()
    if unknown := sorted(names_in_code() - texts.keys()):
        raise ValueError(f"environment variables without a description beside them: {', '.join(unknown)}")
    return (
        title("Environment variables")
        + "nnU-Net's own (``nnUNet_raw``, ``nnUNet_preprocessed``, ``nnUNet_results``, ``nnUNet_n_proc_DA``, "
        + "``nnUNet_def_n_proc``) are read as ever. These are braintum's; none of them has to be set.\n\n"
        + "".join(f".. envvar:: {name}\n\n{indented(text)}\n\n" for name, text in texts.items())
    )
