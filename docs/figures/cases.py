"""Draws docs/_static/cases.jpg: slices of the Figshare data set with the outlines that its authors drew.

    python docs/figures/cases.py FOLDER docs/_static/cases.jpg

FOLDER holds the slices as pictures (slices/N.jpg) and slices.csv with the columns index, label, size and border_xy: the
outline as x y x y …, counted from 1, in pixels of a square slice of that size.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

CLASS_NAMES = {"1": "meningioma", "2": "glioma", "3": "pituitary tumour"}
CHOSEN = ("135", "610", "744", "2604", "1051", "1825")
OUTLINE = "#ffd24a"


def draw(folder: Path, output: Path, chosen: tuple[str, ...]) -> None:
    """Draw the chosen slices side by side."""
    with (folder / "slices.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["index"]: row for row in csv.DictReader(file)}
    figure, axes = plt.subplots(1, len(chosen), figsize=(2 * len(chosen), 2.25), facecolor="black")
    for axis, index in zip(axes, chosen, strict=True):
        row = rows[index]
        border = np.array(row["border_xy"].split(), dtype=float).reshape(-1, 2) - 1
        closed = np.concatenate([border, border[:1]])
        axis.imshow(Image.open(folder / "slices" / f"{index}.jpg"), cmap="gray")
        axis.plot(closed[:, 0], closed[:, 1], color=OUTLINE, linewidth=1.2)
        axis.set_title(CLASS_NAMES[row["label"]], color="white", fontsize=11, pad=4)
        axis.axis("off")
    figure.subplots_adjust(0.002, 0, 0.998, 0.89, wspace=0.02)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, pil_kwargs={"quality": 85})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--slices", nargs="+", default=CHOSEN, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    draw(args.folder, args.output, tuple(args.slices))


if __name__ == "__main__":
    main()
