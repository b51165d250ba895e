"""Sphinx extension: how docstrings are read here.

Types stand in annotations alone: a colon in the first sentence of a constant's docstring, or of what is returned, ends
no type, which is what napoleon takes it for.
"""

import importlib
import inspect
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring


def _returned(self: Any, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    lines = self._dedent(self._consume_to_next_section())
    return [("", "", type(self)(lines, self._config).lines())] if lines else []


def _constant(self: Any) -> tuple[str, list[str]]:
    return "", type(self)(self._dedent(self._consume_to_end()), self._config).lines()


def _skip_other_names(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """A class or function under another name, such as the default of a dataclass, is documented where it is defined."""
    is_alias = (inspect.isclass(value) or inspect.isfunction(value)) and value.__name__ != name
    return True if is_alias else None


def _imported_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Node | None:
    """A docstring may call by its short name what its module imports."""
    module = node.get("py:module") or ""
    if not module.startswith("braintum"):
        return None
    value = getattr(importlib.import_module(module), node["reftarget"], None)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return None
    if not value.__module__.startswith("braintum"):
        return text
    target = f"{value.__module__}.{value.__qualname__}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    GoogleDocstring._consume_returns_section = _returned  # type: ignore[method-assign]
    GoogleDocstring._consume_inline_attribute = _constant  # type: ignore[method-assign]
    app.connect("autodoc-skip-member", _skip_other_names)
    app.connect("missing-reference", _imported_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
