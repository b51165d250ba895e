"""nnU-Net's ``debug.json`` without host name and paths."""

import json
import re
from pathlib import Path

from braintum.conversion.files.atomic import write_json_atomic

_START = r"(?:[A-Za-z]:)?[\\/]"
_PATHS = (
    re.compile(rf"^{_START}[^'\"\n]*[\\/]+[^'\"\n]*$"),  # a text that is one path
    re.compile(rf"(?<=['\"]){_START}[^'\"\n]*[\\/]+[^'\"\n]*(?=['\"])"),  # in quotes, with any other character
    re.compile(rf"(?<=[\s(=,\[]){_START}+[^\\/\s'\",)\]]+[\\/]+[^\s'\",)\]]*"),
)


def remove_machine(file: Path) -> None:
    """Drop the host name, and of each absolute path all but its last part.

    Args:
        file: ``debug.json`` as nnU-Net writes it, a flat object of texts; replaced.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("hostname", None)
    write_json_atomic(file, {key: without_folders(str(value)) for key, value in content.items()})


def without_folders(text: str) -> str:
    """A text whose absolute paths are cut down to their last part."""
    for path in _PATHS:
        text = path.sub(lambda found: "…/" + re.split(r"[\\/]+", found.group())[-1], text)
    return text
