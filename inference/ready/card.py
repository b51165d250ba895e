"""Model cards: what a model is, what it was trained on, how good it is, and what it is not for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.conversion.files.json_files import check_schema, read_json_object

CARD_FILE = "card.json"

_TEXT = {"type": "string", "maxLength": 4000}
_TEXTS = {"type": "array", "items": _TEXT, "maxItems": 50}
_SCHEMA = {
    "type": "object",
    "required": [
        "name",
        "version",
        "summary",
        "classes",
        "data",
        "licence",
        "figures",
        "not_for",
        "command",
        "weights",
    ],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,63}$"},
        "version": _TEXT,
        "summary": _TEXT,
        "classes": _TEXTS,
        "input": _TEXT,
        "data": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "licence", "images"], "additionalProperties": True},
        },
        "starting_weights": {"type": "object"},
        "licence": _TEXT,
        "split": _TEXT,
        "figures": {
            "type": "array",
            "items": {"type": "object", "required": ["what", "value"], "additionalProperties": True},
        },
        "controls": _TEXTS,
        "not_for": _TEXTS,
        "command": _TEXTS,
        "weights": _TEXT,
    },
}


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged, or lacks something.
    """
    file = folder / CARD_FILE
    card = read_json_object(file, "install the model again")
    check_schema(card, _SCHEMA, file, "install the model again")
    return card


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = [f"# {card['name']} {card['version']}", "", card["summary"], ""]
    lines += [f"- Classes: {', '.join(card['classes'])}", f"- Input: {card.get('input', '')}"]
    lines += [f"- Licence of the model: {card['licence']}", f"- Weights (SHA-256 over the tensors): {card['weights']}"]
    if start := card.get("starting_weights"):
        lines.append("- Started from: " + ", ".join(f"{key} {value}" for key, value in start.items()))
    lines += ["", "## Trained on", ""]
    for data in card["data"]:
        rest = "; ".join(f"{key}: {value}" for key, value in data.items() if key not in ("name", "images", "licence"))
        lines.append(f"- {data['name']}: {data['images']} images, {data['licence']}{'; ' + rest if rest else ''}")
    lines += ["", "## How good it is", "", card.get("split", ""), ""]
    for figure in card["figures"]:
        interval = f" (95 %: {figure['interval']})" if figure.get("interval") else ""
        where = f", {figure['data']}" if figure.get("data") else ""
        lines.append(f"- {figure['what']}: {figure['value']}{interval}{where}")
    if controls := card.get("controls"):
        lines += ["", "## Controls", "", *(f"- {control}" for control in controls)]
    lines += ["", "## What it is not for", "", *(f"- {text}" for text in card["not_for"])]
    lines += ["", "## Made by", "", "```bash", *card["command"], "```"]
    return "\n".join(lines)
