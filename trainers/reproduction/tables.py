"""A paper's tables, with our figures below the published ones."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from braintum.trainers.reproduction.registry import SPLIT_NAMES, Column, PaperTable, Reproduction
from braintum.trainers.reproduction.runs import Outcome

NOTHING = "–"
_SOURCES = {**SPLIT_NAMES, "test": "test part", "external": "external part"}


def paper_table(table: PaperTable, outcomes: Mapping[str, Mapping[str, Outcome]]) -> list[list[str]]:
    """Rows of a table, with its heading.

    Args:
        table: of the paper.
        outcomes: system → split → figures.
    """
    rows = [["system", "figures", *(column.name for column in table.columns)]]
    for system, published in table.published.items():
        rows.append([system, "published", *(published or (NOTHING,) * len(table.columns))])
        for split, outcome in outcomes.get(system, {}).items():
            if table.part not in ("", split):
                continue
            rows.append(["", _SOURCES[split], *(_ours(column, outcome) for column in table.columns)])
    return rows


def tables_text(
    reproduction: Reproduction,
    outcomes: Mapping[str, Mapping[str, Outcome]],
    dataset: str,
    folds: Sequence[int],
    fraction: float,
) -> str:
    """All tables of a paper as Markdown; each title says how much was trained."""
    length = "the paper's number of epochs" if fraction == 1 else f"{fraction:g} of the paper's epochs"
    how = f"ours: {dataset}, fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}, {length}"
    parts = []
    for table in reproduction.tables:
        heading, *rows = paper_table(table, outcomes)
        text = tabulate(rows, heading, "github", disable_numparse=True)
        parts.append(f"Paper {reproduction.paper.number}, {table.title}; {how}\n\n{text}\n")
    return "\n".join(parts)


def _ours(column: Column, outcome: Outcome) -> str:
    found = column.read(outcome.summary, outcome.whole)
    if found is None or found.get("value") is None:
        return NOTHING
    digits = 2 if column.scale > 1 else 3
    texts = [f"{found[key] * column.scale:.{digits}f}" for key in ("value", "sd") if found.get(key) is not None]
    return "±".join(texts)
