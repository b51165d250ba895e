"""What ``braintum_calibrate`` writes for people and reports: JSON, CSV and a figure."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.commands.provenance import provenance
from braintum.conversion.files.atomic import atomic_path, write_json_atomic

CALIBRATION_FILE, CURVE_FILE, FIGURE_FILE = "calibration.json", "risk_coverage.csv", "calibration.png"


def write_calibration(figures: Mapping[str, Any], folder: Path) -> None:
    """Write ``calibration.json``, ``risk_coverage.csv`` and ``calibration.png``.

    Args:
        figures: of :func:`braintum.evaluation.calibration.calibration.calibrate`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(folder / CURVE_FILE) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, ("coverage", "risk", "threshold"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(figures["risk_coverage"])
    with atomic_path(folder / FIGURE_FILE) as temporary:
        _draw(figures, temporary)
    write_json_atomic(folder / CALIBRATION_FILE, {**figures, "provenance": provenance()})


def _draw(figures: Mapping[str, Any], file: Path) -> None:
    """Reliability before and after, and risk against coverage."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    picture = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    for when, marker, colour in (("before", "o", "#b2541a"), ("after", "s", "#1a66b2")):
        points = figures["reliability"][when]
        if points:
            error = figures[when]["ece"]
            horizontal, vertical = ([point[name] for point in points] for name in ("confidence", "accuracy"))
            left.plot(horizontal, vertical, color=colour, linewidth=1, label=f"{when}: ECE {error:.3f}")
            areas = [12 + 150 * point["count"] / figures["num_cases"] for point in points]
            left.scatter(horizontal, vertical, areas, colour, marker=marker)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title="Reliability")
    left.legend(loc="lower right")
    curve = figures["risk_coverage"]
    right.step([p["coverage"] for p in curve], [p["risk"] for p in curve], where="post", color="#1a66b2")
    if figures["target_accuracy"] is not None:
        target = figures["target_accuracy"]
        right.axhline(1 - target, color="0.6", linewidth=1, linestyle="--", label=f"target accuracy {target:g}")
    if figures["threshold"] is not None:
        coverage = figures["coverage_at_threshold"]
        label = f"threshold {figures['threshold']:.3f}: {coverage:.0%} of the cases"
        right.axvline(coverage, color="#b2541a", linewidth=1, label=label)
    right.set(xlabel="coverage", ylabel="risk (share of errors)", xlim=(0, 1.02), title="Risk and coverage")
    right.set_ylim(bottom=0)
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="upper left")
    picture.suptitle(
        f"Temperature {figures['temperature']:.3f}; {figures['num_cases']} held-out cases; AURC {figures['aurc']:.4f}"
    )
    picture.savefig(file, dpi=130)
