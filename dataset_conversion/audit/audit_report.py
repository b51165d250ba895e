"""Writes an audit: `audit.json` for programs, `audit.html` for people, one file without any external part."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from braintum.conversion.audit.audit import FORMAT, Audit, SplitReport
from braintum.conversion.audit.audit_input import AuditImage
from braintum.conversion.duplicates.duplicates import DuplicatePair
from braintum.conversion.duplicates.image_reading import UnreadableImageError, read_grey
from braintum.conversion.files.atomic import atomic_path, write_json_atomic

JSON_FILE = "audit.json"
HTML_FILE = "audit.html"
MAX_PICTURES = 40
"""Pairs that are shown as pictures."""
_PICTURE_SIZE = 176

_STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --back: #ffffff; --soft: #eef1f4; --line: #c5ccd3;
  --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --back: #14181c; --soft: #20262c; --line: #47515b;
  --bad: #ff9a91; --good: #7fd6a0; } }
body { color: var(--text); background: var(--back); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.verdict { font-size: 1.15rem; font-weight: 600; border-left: 0.4rem solid; padding: 0.5rem 1rem;
  background: var(--soft); }
.bad { color: var(--bad); } .good { color: var(--good); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; padding: 0.4rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(23rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.6rem; background: var(--soft); border-radius: 0.4rem; }
figure div { display: flex; gap: 0.3rem; } figure img { width: 50%; object-fit: contain; background: #000; }
figcaption { font-size: 0.85rem; overflow-wrap: anywhere; }
"""


def check_output(folder: Path) -> None:
    """Checks that an audit can be written to a folder: it is not there, is empty, or holds an earlier audit.

    Raises:
        FileExistsError: it holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; choose another folder with -o")
    if not any(folder.iterdir()):
        return
    try:
        content = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileExistsError(f"{folder}: is not empty, and holds no earlier audit; choose another folder with -o")


def write_audit(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Writes `audit.json` and `audit.html`; replaces those of an earlier audit.

    Raises:
        FileExistsError: the folder holds something else than an audit.

    Returns:
        The two files.
    """
    check_output(folder)
    page = html_page(audit)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / JSON_FILE, audit.to_json())
    with atomic_path(folder / HTML_FILE) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")  # names of files
    return folder / JSON_FILE, folder / HTML_FILE


def worst_pairs(audit: Audit) -> list[DuplicatePair]:
    """Returns one crossing pair a group of duplicates, the surest first."""
    crossing = {index for split in audit.splits for index in split.pairs}
    group_of = {index: number for number, group in enumerate(audit.groups) for index in group}
    best: dict[int, DuplicatePair] = {}
    for index in sorted(
        crossing, key=lambda number: (-audit.pairs[number].score, audit.pairs[number].kind != "exact", number)
    ):
        best.setdefault(group_of[audit.pairs[index].first], audit.pairs[index])
    return list(best.values())


def verdict(audit: Audit) -> str:
    """Returns the result in one sentence."""
    if not audit.source.splits:
        return f"{len(audit.pairs)} pairs of duplicates; there is no split that they could cross."
    if not audit.leaks and audit.num_left_out:
        number = len(audit.source.images) - len(audit.unreadable)
        return f"Nothing crosses a split among the {number} images that were read; {audit.num_left_out} were not."
    if not audit.leaks:
        return "Nothing crosses a split."
    parts = []
    for what, noun in (
        ("case", "image(s)"),
        ("duplicates", "group(s) of duplicates"),
        ("patient", "patient(s)"),
        ("group", "declared group(s)"),
    ):
        names = {entry.name for split in audit.splits for entry in split.crossings if entry.what == what}
        if names:
            parts.append(f"{len(names)} {noun}")
    return f"Leaking: {', '.join(parts)} are on several sides of a split."


def html_page(audit: Audit) -> str:
    """Returns the report, one self-contained page."""
    state = "bad" if audit.leaks or audit.num_left_out else "good"
    body = [
        f"<h1>Audit of {escape(audit.source.title)}</h1>",
        f'<p class="verdict {state}">{escape(verdict(audit))}</p>',
        *(f"<p>{escape(note)}</p>" for note in audit.source.notes),
        "<h2>Overview</h2>",
        _table(
            "What was found",
            ("", "number"),
            [
                ("images", len(audit.source.images)),
                ("pairs of duplicates", len(audit.pairs)),
                ("groups of duplicates", len(audit.groups)),
                ("images with problems", len(audit.image_problems)),
                ("masks with problems", len(audit.mask_problems)),
            ],
        ),
        *_splits(audit),
        *_pictures(audit),
        "<h2>Problems</h2>",
        _table("Empty, constant or corrupt images", ("image", "problem"), audit.image_problems.items()),
        _table("Not looked at", ("what",), [(what,) for what in audit.source.not_read]),
        _table("Masks that contradict classes", ("image", "problem"), audit.mask_problems.items()),
        "<h2>All duplicates</h2>",
        _all_pairs(audit),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Audit of {escape(audit.source.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _splits(audit: Audit) -> list[str]:
    if not audit.splits:
        return []
    rows = []
    for split in audit.splits:
        sides = ", ".join(f"{side}: {sum(counts.values())}" for side, counts in split.balance.items())
        numbers = [sum(entry.what == what for entry in split.crossings) for what in _WHATS]
        difference = f"{split.largest_difference:.1f}"
        rows.append((split.name, sides, len(split.pairs), *numbers, difference))
    headings = ("split", "images", "crossing pairs", *(f"crossing {word}" for word in _WHATS.values()), "balance ±")
    return [
        "<h2>Splits</h2>",
        _table("What crosses a split (balance: percentage points between a side and all images)", headings, rows),
        *(_crossings(split) for split in audit.splits if split.crossings),
        "<h2>Class balance</h2>",
        *(_balance(split) for split in audit.splits),
    ]


_WHATS = {"case": "images", "duplicates": "groups of duplicates", "patient": "patients", "group": "declared groups"}


def _crossings(split: SplitReport) -> str:
    rows = [
        (entry.what, entry.name, "; ".join(f"{side}: {', '.join(names)}" for side, names in entry.members.items()))
        for entry in split.crossings
    ]
    return _details(f"{split.name}: all that crosses", _table("", ("what", "name", "where"), rows))


def _balance(split: SplitReport) -> str:
    classes = list(next(iter(split.balance.values())))
    rows = []
    for side, counts in split.balance.items():
        total = max(sum(counts.values()), 1)
        rows.append((side, *(f"{counts[name]} ({100 * counts[name] / total:.1f} %)" for name in classes)))
    return _table(split.name, ("side", *classes), rows)


def _pictures(audit: Audit) -> list[str]:
    crossing = worst_pairs(audit)
    shown, title = crossing, "Duplicates across a split"
    if not crossing:
        shown, title = sorted(audit.pairs, key=lambda pair: pair.score), "Duplicates, the least similar first"
    if not shown:
        return []
    number = f"<p>{min(len(shown), MAX_PICTURES)} of {len(shown)} are shown.</p>"
    images = audit.source.images
    figures = []
    for pair in shown[:MAX_PICTURES]:
        pictures = "".join(_picture(images[index]) for index in (pair.first, pair.second))
        how = pair.kind if pair.transformation == "none" else pair.transformation
        figures.append(
            f"<figure><div>{pictures}</div><figcaption>{escape(images[pair.first].name)}<br>"
            f"{escape(images[pair.second].name)}<br>{escape(how)}, score {pair.score:.3f}</figcaption></figure>"
        )
    return [f"<h2>{title}</h2>", number, f'<div class="pairs">{"".join(figures)}</div>']


def _picture(image: AuditImage) -> str:
    try:
        pixels = read_grey(image.path).pixels
    except UnreadableImageError:  # byte-identical corrupt files
        return f"<span>{escape(image.name)} is not readable</span>"
    low, high = float(pixels.min()), float(np.percentile(pixels, 99.5))
    grey = np.clip((pixels - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(f"Image {image.name}", quote=True)}">'


def _all_pairs(audit: Audit) -> str:
    names = [image.name for image in audit.source.images]
    crossed: dict[int, list[str]] = {}
    for split in audit.splits:
        for index in split.pairs:
            crossed.setdefault(index, []).append(split.name)
    rows = [
        (
            names[pair.first],
            names[pair.second],
            pair.kind,
            pair.transformation,
            pair.score,
            ", ".join(crossed.get(i, ())),
        )
        for i, pair in enumerate(audit.pairs)
    ]
    headings = ("first", "second", "kind", "transformation", "score", "crosses")
    return _details(f"{len(rows)} pairs", _table("", headings, rows))


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table, or a sentence if it has no rows; numbers are aligned to the right."""
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="number">{cell}</td>' if isinstance(cell, (int, float)) else f"<td>{escape(str(cell))}</td>"
            for cell in row
        )
        lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return f"<p>{escape(caption or 'Here')}: none.</p>"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
