"""The worst, median and best cases of a set of predictions as one picture: image, truth, prediction."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from braintum.conversion.files.atomic import atomic_path
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.report.cases import ranked_cases
from braintum.evaluation.report.images import CaseSlice, case_slice
from braintum.evaluation.results.case_table import CaseTable

_PANEL = 1.75  # inches; each case has three of them side by side
_HEADING = 0.62  # inches above them
_TRUTH, _PREDICTION = "#0f9d76", "#d9730a"  # as in the report's legend
_WRONG = "#b3261e"
_STYLE: Any = {"font.size": 8.5, "text.parse_math": False}  # a dollar sign in a class name is no formula


def draw_case_sheet(table: CaseTable, images: Mapping[str, Sequence[str]], file: Path, number: int = 2) -> list[str]:
    """Draw the worst, median and best cases by Dice, a row each, with true class, predicted class and its probability.

    Args:
        table: figures of each case.
        images: case → files of its channels.
        file: the picture, a PNG.
        number: how many of each; fewer where there are not enough.

    Returns:
        The cases that it shows.

    Raises:
        ValueError: no case truly shows a tumour, image and masks of a case do not match, or a file cannot be read.
    """
    groups = ranked_cases(table, number)[::-1]
    if not groups:
        raise ValueError("no case truly shows a tumour: there is no Dice to choose cases by")
    columns = max(len(group.rows) for group in groups)
    shown = []
    with matplotlib.rc_context(_STYLE):
        # without pyplot: no global state, no backend of a screen
        figure = Figure((3 * _PANEL * columns, (_PANEL + _HEADING) * len(groups)), dpi=150, layout="constrained")
        cells = figure.subfigures(len(groups), columns, squeeze=False, wspace=0.04)
        for group, line in zip(groups, cells, strict=True):
            for row, cell in zip(group.rows, line, strict=False):
                case = table.cases[row]
                text, is_right = _heading(table, row)
                title = f"{group.title}, {case}: Dice {table.dice[row]:.2f}{text}"
                cell.suptitle(title, color="black" if is_right else _WRONG)
                _draw_case(case_slice(table, row, images[case]), cell.subplots(1, 3))
                shown.append(case)
        with atomic_path(file) as partial:
            figure.savefig(partial, format="png")
    return shown


def _heading(table: CaseTable, row: int) -> tuple[str, bool]:
    """What is known of the class of a case, and whether it is predicted right (or nothing can tell)."""
    if table.predictions.schema is None or table.probabilities is None:
        return "", True
    true, predicted = (int(classes[row]) for classes in (table.true_class, table.predicted_class))
    names = table.predictions.schema.class_names
    if predicted == UNKNOWN:
        said = "class withheld"
    else:
        said = f"predicted {names[predicted]} ({table.probabilities[row, predicted]:.2f})"
    truth = "true class unknown" if true == UNKNOWN else f"true {names[true]}"
    return f"\n{truth}, {said}", UNKNOWN in (true, predicted) or true == predicted


def _draw_case(shown: CaseSlice, panels: Sequence[Axes]) -> None:
    parts = (("image", None, ""), ("truth", shown.truth, _TRUTH), ("prediction", shown.prediction, _PREDICTION))
    width, height = shown.grey.size
    for axes, (title, mask, colour) in zip(panels, parts, strict=True):
        is_empty = mask is not None and not mask.any()
        axes.imshow(shown.grey, cmap="gray")
        axes.set_title(f"no {title}" if is_empty else title, fontsize=7.5, color=colour or "black", pad=2)
        axes.set_axis_off()
        if mask is None or is_empty:
            continue
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(_tinted(mask, colour), extent=extent, interpolation="nearest")
        rows, edges = mask.shape
        y, x = (np.arange(rows) + 0.5) * height / rows - 0.5, (np.arange(edges) + 0.5) * width / edges - 0.5
        axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=0.9)


def _tinted(mask: np.ndarray, colour: str) -> np.ndarray:
    """A mask as an image that lets what is below shine through, (Y, X, 4)."""
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = to_rgba(colour, 0.35)
    return tint
