"""The table that a conversion (and its dry run) ends with."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from braintum.conversion.format.cases import FOLDER_ENDINGS, Case

HEADINGS = ("class", "cases", "patients", "tumour size, median [min–max]", "spacing", "image size")
MAX_SIZES = 3
"""Of more image sizes than this only the most frequent and the number of the others are shown."""


@dataclass(frozen=True)
class CaseReport:
    """What the check of one case found.

    Attributes:
        case: its row of `cases.csv`.
        size: image size in pixels, in the order x, y[, z].
        tumour_size: size of the tumour's mask in the table's unit; None where there is no mask.
    """

    case: Case
    size: tuple[int, ...]
    tumour_size: float | None = None


def summary_table(reports: Sequence[CaseReport], class_names: Sequence[str], unit: str = "mm²") -> str:
    """Returns a plain-text table with one row a class and one for all.

    Args:
        reports: one a case.
        class_names: rows, in this order; a row for cases of unknown class is added where there are any.
        unit: of the tumour sizes: `mm²` for slices of known spacing, `px` for others, `ml` for volumes.
    """
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name in class_names:
        rows.append(_row(name, [report for report in reports if report.case.tumour_class == name], unit))
    unknown = [report for report in reports if report.case.tumour_class not in class_names]
    if unknown:
        rows.append(_row("unknown", unknown, unit))
    rows.append(_row("all", reports, unit))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (1, 2) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def summary_notes(reports: Sequence[CaseReport]) -> str:
    """Returns what the table does not show, one fact a line: test part, unknown masks, duplicates, no spacing."""
    n_unknown = sum(report.tumour_size is None for report in reports)
    groups = Counter(report.case.group for report in reports if report.case.group)
    n_without_spacing = sum(not report.case.spacing for report in reports)
    facts = (
        (n_unknown, f"{n_unknown} cases have no mask: their label map is the ignore label, they train the class only"),
        (len(groups), f"{sum(groups.values())} cases are in {len(groups)} groups of images of the same slice"),
        (n_without_spacing, f"{n_without_spacing} cases have no spacing: their distances are in pixels"),
    )
    return "\n".join([*part_notes(reports), *(fact for number, fact in facts if number), *plane_note(reports)])


def part_notes(reports: Sequence[CaseReport]) -> list[str]:
    """Returns a line for each part of the cases that is not trained on."""
    counts = Counter(report.case.split for report in reports)
    return [
        f"{counts[part]} cases are the source's {part} part (images{ending})"
        for part, ending in FOLDER_ENDINGS.items()
        if part != "train" and counts[part]
    ]


def plane_note(reports: Sequence[CaseReport], remedy: str = "") -> list[str]:
    """Returns a line where the slices of a data set lie in several planes, which a 2-D network learns as one."""
    planes = Counter(report.case.plane for report in reports if report.case.plane and len(report.size) == 2)
    if len(planes) < 2:
        return []
    shown = ", ".join(f"{plane} ({count})" for plane, count in sorted(planes.items()))
    return [f"Slices in several planes: {shown}: a 2-D network learns them as one" + (f"; {remedy}" if remedy else "")]


def _row(name: str, reports: Sequence[CaseReport], unit: str) -> tuple[str, ...]:
    patients = {report.case.patient for report in reports if report.case.patient}
    sizes = [report.tumour_size for report in reports if report.tumour_size is not None]
    size = f"{median(sizes):.0f} [{min(sizes):.0f}–{max(sizes):.0f}] {unit}" if sizes else "–"
    spacings = [f"{report.case.spacing.replace(' ', '×')} mm" if report.case.spacing else "–" for report in reports]
    shapes = ["×".join(map(str, report.size)) for report in reports]
    return (name, str(len(reports)), str(len(patients) or "–"), size, _frequencies(spacings), _frequencies(shapes))


def _frequencies(values: Sequence[str]) -> str:
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    if len(counts) <= 1:
        return counts[0][0] if counts else "–"
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:MAX_SIZES])
    return shown + (f", {len(counts) - MAX_SIZES} more" if len(counts) > MAX_SIZES else "")
