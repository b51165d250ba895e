"""The charts of a report as inline SVG: drawn by matplotlib, coloured by the page, its dark mode included."""

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from braintum.evaluation.report.curves import Curve, SizeGroup

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_SIZE = (4.4, 3.2)  # inches; at 72 points an inch its text is of the page's size on a phone
_POINT = 14  # area of a case, in square points
_MAX_POINTS = 1000
"""Cases of a class that a chart shows."""
_TEXT, _SOFT, _LINE = "#010101", "#010102", "#010103"
_SERIES = tuple(f"#0101{number:02x}" for number in range(0x11, 0x19))
_VARIABLES = {
    _TEXT: "var(--text)",
    _SOFT: "var(--muted)",
    _LINE: "var(--line)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, 1)},
}
"""Colours that matplotlib draws with, and what stands for them in the page."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, read out by screen readers, found by search
    "text.parse_math": False,  # class names are data: a dollar sign in one is no formula
    "path.simplify": True,
    "font.size": 9.5,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "text.color": _TEXT,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


def draw(name: str, description: str, plot: Callable[[Axes], None], size: tuple[float, float] = _SIZE) -> str:
    """An SVG element for a page.

    Args:
        name: unique in the page; elements of the picture that refer to each other are named after it.
        description: alternative text.
        plot: draws into empty axes, in the colours of this module.
        size: in inches.
    """
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)  # without pyplot: no global state, no backend of a screen
        plot(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), name, description)


def _for_page(text: str, name: str, description: str) -> str:
    """Matplotlib's file as an element of a page: described, scalable, in the page's font and colours."""
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    root = ElementTree.fromstring(text)
    for child in list(root):
        if child.tag == f"{{{_SVG}}}metadata":
            root.remove(child)
    references = {
        value.split("#", 1)[1].rstrip(")") for node in root.iter() for value in node.attrib.values() if "#" in value
    }
    for node in root.iter():
        identifier = node.attrib.pop("id", None)
        if identifier in references:
            node.set("id", f"{name}-{identifier}")
        for key, value in list(node.attrib.items()):
            if key == f"{{{_LINK}}}href":
                del node.attrib[key]
                node.set("href", value.replace("#", f"#{name}-"))
            elif value.startswith("url(#"):
                node.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style" and "font:" in value:
                node.set(key, value.replace("'DejaVu Sans', 'Bitstream Vera Sans'", "system-ui"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("class", "chart")
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode").replace(f' xmlns="{_SVG}"', "")


def training_curves(
    name: str, logs: Mapping[int, Mapping[str, np.ndarray]], keys: Mapping[str, str], label: str
) -> str:
    """Curves over epochs: a colour a fold, a dash pattern a quantity.

    Args:
        name: see :func:`draw`.
        logs: fold → key → (epochs,).
        keys: which quantities, and what they are called.
        label: of the vertical axis.
    """

    def plot(axes: Axes) -> None:
        for position, (fold, curves) in enumerate(logs.items()):
            for number, (key, title) in enumerate(keys.items()):
                if key in curves:
                    values = curves[key]
                    legend = title if position == 0 and len(logs) == 1 else None
                    colour = _SERIES[(number if len(logs) == 1 else position) % len(_SERIES)]
                    axes.plot(
                        np.arange(1, len(values) + 1), values, color=colour, linestyle=_DASHES[number], label=legend
                    )
            if len(logs) > 1:
                axes.plot([], [], color=_SERIES[position % len(_SERIES)], label=f"fold {fold}")
        if len(logs) > 1 and len(keys) > 1:
            for number, title in enumerate(keys.values()):
                axes.plot([], [], color=_SOFT, linestyle=_DASHES[number], label=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if len(logs) > 1:  # too many entries for a place between the curves
            axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=4, columnspacing=1, handlelength=1.4)
        else:
            _legend(axes)

    folds = ", ".join(str(fold) for fold in logs)
    return draw(name, f"{label} over the epochs of training: {', '.join(keys.values())}; folds {folds}", plot)


def curves_of_models(name: str, curves: Mapping[str, Sequence[np.ndarray]], label: str) -> str:
    """A quantity over epochs, a colour a model: a thin line a fold, and their mean as far as all of them go.

    Args:
        name: see :func:`draw`.
        curves: model → one (epochs,) a fold.
        label: of the vertical axis.
    """

    def plot(axes: Axes) -> None:
        for position, (model, folds) in enumerate(curves.items()):
            colour = _SERIES[position % len(_SERIES)]
            if len(folds) > 1:
                for values in folds:
                    axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=0.6, alpha=0.6)
            shared = min(len(values) for values in folds)
            mean = np.mean([values[:shared] for values in folds], axis=0)
            dashes = _DASHES[position % len(_DASHES)]
            axes.plot(np.arange(1, shared + 1), mean, color=colour, linestyle=dashes, label=model)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        _legend(axes)

    return draw(name, f"{label} over the epochs of training, of {', '.join(curves)}", plot)


def bars_with_intervals(name: str, series: Mapping[str, Mapping[str, Mapping[str, Any] | None]]) -> str:
    """A group of bars a figure, a bar a model, with intervals where there are any.

    Args:
        name: see :func:`draw`.
        series: model → name of a figure → ``value``, ``low`` and ``high``; None, or a value None, where undefined.
            Figures that no model has are left out.
    """
    shown: dict[str, dict[str, Mapping[str, Any]]] = {}
    for model, found in series.items():
        for title, values in found.items():
            if values is not None and values["value"] is not None:
                shown.setdefault(title, {})[model] = values

    def plot(axes: Axes) -> None:
        width = 0.8 / len(series)
        for position, model in enumerate(series):
            for group, values in enumerate(shown.values()):
                if model not in values:
                    continue
                value = float(values[model]["value"])
                low, high = (values[model].get(key) for key in ("low", "high"))
                x = group + (position - (len(series) - 1) / 2) * width
                label = model if group == next(i for i, v in enumerate(shown.values()) if model in v) else None
                axes.bar(x, value, 0.9 * width, color=_SERIES[position % len(_SERIES)], alpha=0.85, label=label)
                if low is not None:
                    axes.plot([x, x], [low, high], color=_TEXT, linewidth=1.2)
        axes.set_xticks(range(len(shown)), list(shown))
        axes.set_ylim(0, 1.03)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3, columnspacing=1, handlelength=1.4)

    texts = "; ".join(
        f"{title}: " + ", ".join(f"{model} {values['value']:.3f}" for model, values in found.items())
        for title, found in shown.items()
    )
    return draw(name, f"Figures of the models. {texts}", plot, (8.8, 3.4))


def class_curves(name: str, curves: Sequence[Curve], title: str, axis_labels: tuple[str, str], chance: bool) -> str:
    """ROC or precision-recall curves, one a class; ``chance`` draws the diagonal."""

    def plot(axes: Axes) -> None:
        if chance:
            axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (2, 2)))
        for number, curve in enumerate(curves):
            axes.plot(
                curve.x,
                curve.y,
                color=_SERIES[number % len(_SERIES)],
                linestyle=_DASHES[number % len(_DASHES)],
                label=f"{curve.name} ({curve.figure:.3f})",
            )
        _unit_square(axes, *axis_labels)
        _legend(axes, "lower right" if chance else "lower left")

    areas = ", ".join(f"{curve.name} {curve.figure:.3f}" for curve in curves)
    return draw(name, f"{title}. {areas}", plot)


def reliability_diagram(name: str, series: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Confidence against accuracy; the size of a point tells how many cases it stands for.

    Args:
        name: see :func:`draw`.
        series: such as before and after calibration.
    """

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (2, 2)), label="perfect")
        for number, (title, bins) in enumerate(series.items()):
            x, y = ([entry[key] for entry in bins] for key in ("confidence", "accuracy"))
            total = max(1, sum(entry["count"] for entry in bins))
            sizes = [12 + 240 * entry["count"] / total for entry in bins]
            colour = _SERIES[number]
            axes.plot(x, y, color=colour, linewidth=1, linestyle=_DASHES[number], label=title or None)
            axes.scatter(x, y, s=sizes, color=colour, alpha=0.65, linewidths=0)
        _unit_square(axes, "confidence", "accuracy")
        _legend(axes, "upper left")

    points = "; ".join(
        f"{title + ': ' if title else ''}"
        + ", ".join(f"{entry['accuracy']:.2f} at {entry['confidence']:.2f} ({entry['count']})" for entry in bins)
        for title, bins in series.items()
    )
    return draw(name, f"Reliability: accuracy at confidence (cases). {points}", plot)


def risk_coverage_curve(name: str, series: Mapping[str, Curve], marked: tuple[float, float] | None = None) -> str:
    """Share of errors among the answered cases against their share of all.

    Args:
        name: see :func:`draw`.
        series: such as before and after calibration.
        marked: coverage and risk of a chosen threshold.
    """

    def plot(axes: Axes) -> None:
        for number, (title, curve) in enumerate(series.items()):
            axes.step(
                curve.x,
                curve.y,
                where="post",
                color=_SERIES[number],
                linestyle=_DASHES[number],
                label=f"{title} (area {curve.figure:.3f})".strip(),
            )
        if marked is not None:
            axes.plot(*marked, "o", color=_SERIES[1], markersize=7, label="threshold")
        axes.set_xlim(0, 1)
        highest = max((float(curve.y.max()) for curve in series.values()), default=0.0)
        axes.set_ylim(0, min(1.0, max(0.05, 1.15 * highest)))
        axes.set_xlabel("coverage: share of cases answered, the surest first")
        axes.set_ylabel("risk: share of errors")
        _legend(axes, "upper left")

    areas = ", ".join(f"{title} {curve.figure:.3f}".strip() for title, curve in series.items())
    return draw(name, f"Risk-coverage curve, area under it: {areas}", plot)


def dice_by_class(name: str, values: Mapping[str, np.ndarray]) -> str:
    """Dice of every case, and quartiles, by class.

    Args:
        name: see :func:`draw`.
        values: class → (cases,) without NaN.
    """

    def plot(axes: Axes) -> None:
        generator = np.random.default_rng(0)
        for number, dice in enumerate(values.values()):
            colour = _SERIES[number % len(_SERIES)]
            points = dice[_shown(dice)]
            spread = number + generator.uniform(-0.22, 0.22, len(points))
            axes.scatter(spread, points, s=_POINT, color=colour, alpha=0.7, linewidths=0)
            lines = {"color": _SOFT, "linewidth": 1}
            axes.boxplot(
                dice,
                positions=[number],
                widths=0.55,
                showfliers=False,
                medianprops={"color": _TEXT, "linewidth": 2},
                boxprops=lines,
                whiskerprops=lines,
                capprops=lines,
            )
        axes.set_xticks(range(len(values)), list(values))
        if len(values) > 4:
            axes.tick_params(axis="x", labelrotation=30)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("Dice")

    medians = ", ".join(f"{title} {np.median(dice):.3f} ({len(dice)} cases)" for title, dice in values.items())
    return draw(name, f"Dice of each case by class, with quartiles. Medians: {medians}", plot)


def dice_against_size(
    name: str,
    groups: Sequence[SizeGroup],
    volume: np.ndarray,
    dice: np.ndarray,
    class_of_case: Sequence[str],
    unit: str,
) -> str:
    """Dice of every case against the true size of its tumour, and the mean of each group of sizes.

    Args:
        name: see :func:`draw`.
        groups: from :func:`braintum.evaluation.report.curves.dice_by_size`.
        volume: (cases,), above 0.
        dice: (cases,), without NaN.
        class_of_case: for the colours, which are those of :func:`dice_by_class`; empty where unknown.
        unit: of the sizes.
    """

    def plot(axes: Axes) -> None:
        classes = np.array(class_of_case)
        for number, title in enumerate(dict.fromkeys(class_of_case)):
            members = np.flatnonzero(classes == title)
            members = members[_shown(dice[members])]
            colour = _SERIES[number % len(_SERIES)]
            axes.scatter(
                volume[members],
                dice[members],
                s=_POINT,
                color=colour,
                alpha=0.8,
                linewidths=0,
                label=title or "unknown",
            )
        for group in groups:
            axes.plot([group.low, group.high], [group.dice.value] * 2, color=_TEXT, linewidth=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))  # the default one is a formula
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"true size of the tumour ({unit})")
        axes.set_ylabel("Dice")
        if len(set(class_of_case)) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1, handletextpad=0.2)

    means = ", ".join(f"{group.low:.0f} to {group.high:.0f} {unit}: {group.dice.value:.3f}" for group in groups)
    return draw(name, f"Dice against the true size of the tumour. Means: {means}", plot)


def stress_curve(name: str, title: str, severities: Sequence[float], series: Mapping[str, np.ndarray]) -> str:
    """Metrics against the severity of a corruption.

    Args:
        name: see :func:`draw`.
        title: of the corruption.
        severities: the first one, 0, is that of the unchanged images.
        series: metric → (3, severities): values, and lower and upper bounds, NaN where undefined.
    """

    def plot(axes: Axes) -> None:
        for number, (metric, (values, low, high)) in enumerate(series.items()):
            colour = _SERIES[number % len(_SERIES)]
            axes.plot(
                severities,
                values,
                color=colour,
                linestyle=_DASHES[number % len(_DASHES)],
                marker="o",
                markersize=3.5,
                label=metric,
            )
            if np.isfinite(low).any():
                axes.fill_between(severities, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_ylim(0, 1.03)
        axes.set_xticks(list(severities))
        axes.set_xlabel("severity")
        _legend(axes, "lower left")

    ends = ", ".join(f"{metric} from {values[0]:.3f} to {values[-1]:.3f}" for metric, (values, _, _) in series.items())
    return draw(name, f"{title}: {ends} at the highest severity", plot, (3.4, 2.6))


def _shown(values: np.ndarray) -> np.ndarray:
    """Indices of the points that a chart shows: of too many, those at even steps of rank, both ends among them."""
    if len(values) <= _MAX_POINTS:
        return np.arange(len(values))
    return np.argsort(values, kind="stable")[np.linspace(0, len(values) - 1, _MAX_POINTS).astype(int)]


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _legend(axes: Axes, place: Any = "best") -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=place)
