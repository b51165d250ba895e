"""Draws docs/_static/predictions.jpg: held-out slices with the true and the predicted outline.

    python docs/figures/predictions.py RAW_DATASET MODEL_FOLDER TABLE [TABLE ...] docs/_static/predictions.jpg

The tables are those that benchmarks/accuracy/fold_table.py keeps. For each class three slices are drawn: that with the
best Dice, that with the median, and the worst of which a tumour was outlined at all.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from braintum.conversion.files.json_files import read_json_object
from braintum.inference.ready.own_images import read_image
from braintum.planner.preprocessing.whole_slices import head_box

TRUE, PREDICTED = "#ffd24a", "#3fd0ff"


def chosen(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Best, median and worst of one class."""
    ordered = sorted((row for row in rows if row["HD95"]), key=lambda row: -float(row["Dice"]))
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def draw(raw: Path, model: Path, rows: list[dict[str, str]], output: Path) -> None:
    """Draw a row of slices a class."""
    ending = read_json_object(raw / "dataset.json")["file_ending"]
    names = sorted({row["true_class"] for row in rows})
    figure, axes = plt.subplots(len(names), 3, figsize=(7.5, 2.7 * len(names)), facecolor="black")
    for name, line in zip(names, axes, strict=True):
        for axis, row in zip(line, chosen([row for row in rows if row["true_class"] == name]), strict=True):
            case = row["case"]
            image = read_image(raw / "imagesTr" / f"{case}_0000{ending}").slices[0]
            truth = read_image(raw / "labelsTr" / f"{case}{ending}").slices[0]
            found = read_image(model / f"fold_{row['fold']}" / "validation" / f"{case}{ending}").slices[0]
            _, (top, bottom), (left, right) = head_box(image[None, None])
            axis.imshow(image, cmap="gray", vmax=np.percentile(image, 99.8))
            for mask, colour in ((truth, TRUE), (found, PREDICTED)):
                axis.contour(mask > 0, levels=[0.5], colors=colour, linewidths=1)
            axis.set(xlim=(left, right), ylim=(bottom, top))
            said = f"called {row['predicted_class']}" if row["predicted_class"] != name else name
            axis.set_title(f"{said}, Dice {float(row['Dice']):.2f}", color="white", fontsize=9, pad=3)
            axis.axis("off")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.965, wspace=0.02, hspace=0.12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, pil_kwargs={"quality": 85})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="of nnU-Net")
    parser.add_argument("model", type=Path, help="model folder, with the folds' validation")
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, str]] = []
    for table in args.tables:
        with table.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    draw(args.raw, args.model, rows, args.output)


if __name__ == "__main__":
    main()
