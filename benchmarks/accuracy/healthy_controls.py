r"""Does a model see that there is no tumour, or where an image comes from? Controls for a class of healthy images.

    python benchmarks/accuracy/healthy_controls.py -m MODEL_FOLDER -f 4 -raw RAW_DATASET -o OUTPUT [-lgg kaggle_3m]

Healthy images of public collections come from other scanners and files than those with a tumour, so that a network can
learn the source instead of the tumour. The held-out images of a fold are predicted as they are, and

- recompressed: cropped to the head, 256 pixels wide, JPEG of quality 75, whatever they were before;
- matched: the same, with the histogram of one and the same image;
- border: only the outermost tenth of the head's box is left, the rest is black. Who still knows the class knows the
  source. Beside it the share that logistic regression on such borders of the training images reaches;
- LGG: slices of patients with a glioma that do not meet it (and those that do), contrast channel of TCGA-LGG. None of
  them is healthy by its source, so that a false alarm there is not hidden by knowing the source.

Writes OUTPUT/healthy_controls.csv (each image), .json and .md. Images are predicted as braintum_predict does.
"""

import argparse
import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.exposure import match_histograms
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate

from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import read_splits
from braintum.inference.api import load_predictor
from braintum.inference.ready.own_images import read_image
from braintum.inference.ready.predict_images import predict_images
from braintum.planner.preprocessing.whole_slices import head_box, resized

EDGE, QUALITY, RIM = 256, 75, 0.1
LEAST_BRAIN = 0.1
"""Share of the pixels that are not black, of a slice of LGG that counts."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, required=True, help="model folder")
    parser.add_argument("-f", type=int, required=True, help="fold; its held-out cases are predicted")
    parser.add_argument("-raw", type=Path, required=True, help="folder of the raw data set, with splits and cases.csv")
    parser.add_argument("-lgg", type=Path, help="kaggle_3m in its original layout")
    parser.add_argument("-limit", type=int, default=150, help="images of a class; default: %(default)s")
    parser.add_argument("-o", type=Path, required=True, help="output folder")
    return parser


# ---------------------------------------------------------------------- what is done to an image


def eight_bits(image: np.ndarray) -> np.ndarray:
    """(Y, X) from darkest to brightest as 0 to 255."""
    low, high = float(image.min()), float(image.max())
    return ((image - low) / max(high - low, 1e-9) * 255).round().astype(np.uint8)


def of_one_kind(image: np.ndarray) -> np.ndarray:
    """Cropped to the head, resampled and recompressed."""
    _, rows, columns = head_box(image[None, None])
    head = image[slice(*rows), slice(*columns)]
    scale = EDGE / max(head.shape)
    small = resized(head[None, None], [round(edge * scale) for edge in head.shape], is_labels=False)[0, 0]
    stream = io.BytesIO()
    Image.fromarray(eight_bits(small)).save(stream, format="JPEG", quality=QUALITY)
    return np.asarray(Image.open(stream))


def border(image: np.ndarray) -> np.ndarray:
    """Of an image of one kind, the outermost tenth."""
    rim = [round(RIM * edge) for edge in image.shape]
    kept = image.copy()
    kept[rim[0] : -rim[0], rim[1] : -rim[1]] = 0
    return kept


def border_features(image: np.ndarray) -> np.ndarray:
    """The same as numbers: 32 means along each of the four strips."""
    square = resized(image[None, None], [320, 320], is_labels=False)[0, 0]
    rim = round(RIM * 320)
    strips = (square[:rim], square[-rim:], square[:, :rim].T, square[:, -rim:].T)
    return np.concatenate([strip.reshape(rim, 32, -1).mean((0, 2)) for strip in strips])


# ---------------------------------------------------------------------- images


def image_of(case: str, raw: Path, ending: str) -> np.ndarray:
    """(Y, X) of a case."""
    return read_image(raw / "imagesTr" / f"{case}_0000{ending}").slices[0]


def some(cases: Iterable[str], class_of: Mapping[str, str], limit: int) -> list[str]:
    """As many of each class, the same ones each time."""
    shuffled = np.random.default_rng(0).permutation(sorted(cases)).tolist()
    return [
        case
        for name in sorted(set(class_of.values()))
        for case in [case for case in shuffled if class_of[case] == name][:limit]
    ]


def lgg_slices(folder: Path, limit: int) -> dict[str, tuple[np.ndarray, str]]:
    """Name → contrast channel and what its mask says, of slices that show enough of the brain."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {"without": [], "with": []}
    for mask_file in sorted(folder.glob("*/*_mask.tif")):
        file = mask_file.with_name(mask_file.name.replace("_mask", ""))
        contrast = np.asarray(Image.open(file))[..., 2]
        if (contrast > 0).mean() >= LEAST_BRAIN:
            kind = "with" if np.asarray(Image.open(mask_file)).any() else "without"
            found[kind].append((f"lgg_{file.stem}", contrast))
    chosen = np.random.default_rng(0)
    return {
        name: (image, kind)
        for kind, images in found.items()
        for name, image in (images[i] for i in sorted(chosen.permutation(len(images))[:limit]))
    }


# ---------------------------------------------------------------------- prediction


def predicted(predictor: Any, images: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Case → result, of 8-bit pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        for name, image in images.items():
            Image.fromarray(image).save(folder / f"{name}.png")
        outcome = predict_images(predictor, None, folder, Path(temporary, "output"))
    if outcome.failed:
        raise RuntimeError(f"not predicted: {outcome.failed}")
    return {result["case"]: result for result in outcome.results}


def figures(rows: list[dict[str, Any]], healthy: str) -> dict[str, Any]:
    """Of the rows of one treatment."""
    tumours = [row for row in rows if row["true"] != healthy]
    others = [row for row in rows if row["true"] == healthy]

    def share(of: list[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> float | None:
        return sum(map(holds, of)) / len(of) if of else None

    return {
        "tumour images": len(tumours),
        "type right": share(tumours, lambda row: row["predicted"] == row["true"]),
        "called healthy": share(tumours, lambda row: row["predicted"] == healthy),
        "no mask": share(tumours, lambda row: not row["size"]),
        "healthy images": len(others),
        "called tumour": share(others, lambda row: row["predicted"] != healthy),
        "false mask": share(others, lambda row: bool(row["size"])),
    }


def main() -> None:
    args = build_parser().parse_args()
    description = read_json_object(args.raw / "dataset.json")
    healthy, ending = description["classification"]["negative_class"], description["file_ending"]
    class_of = {name: case.tumour_class for name, case in read_cases(args.raw / "cases.csv").items()}
    split = read_splits(args.raw / "splits_final.json")[args.f]
    predictor = load_predictor(args.m, folds=[args.f])
    images = {case: image_of(case, args.raw, ending) for case in some(split["val"], class_of, args.limit)}
    alike = {case: of_one_kind(image) for case, image in images.items()}
    reference = alike[next(case for case in alike if class_of[case] != healthy)]
    treatments = {
        "as it is": {case: eight_bits(image) for case, image in images.items()},
        "recompressed": alike,
        "matched": {case: match_histograms(image, reference).round().astype(np.uint8) for case, image in alike.items()},
        "border": {case: border(image) for case, image in alike.items()},
    }
    truth = {case: class_of[case] for case in images}
    if args.lgg is not None:
        slices = lgg_slices(args.lgg, 2 * args.limit)
        treatments["LGG"] = {name: image for name, (image, _) in slices.items()}
        truth |= {name: healthy if kind == "without" else "glioma" for name, (_, kind) in slices.items()}
    rows = [
        {
            "treatment": treatment,
            "case": case,
            "true": truth[case],
            "predicted": result["predicted_class"],
            "confidence": f"{result['confidence']:.4f}",
            "size": round(result["tumour_volume"]),
        }
        for treatment, treated in treatments.items()
        for case, result in predicted(predictor, treated).items()
    ]
    found = {
        treatment: figures([row for row in rows if row["treatment"] == treatment], healthy) for treatment in treatments
    }
    probe = border_probe(some(split["train"], class_of, 2 * args.limit), class_of, alike, args.raw, ending)
    found["border, logistic regression"] = probe
    write(args.o, rows, found)


def border_probe(
    training: list[str], class_of: Mapping[str, str], held_out: Mapping[str, np.ndarray], raw: Path, ending: str
) -> dict[str, Any]:
    """What a linear model knows from borders."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced"))
    model.fit(
        np.stack([border_features(of_one_kind(image_of(case, raw, ending))) for case in training]),
        [class_of[case] for case in training],
    )
    said = model.predict(np.stack([border_features(image) for image in held_out.values()]))
    rows = [{"true": class_of[case], "predicted": name, "size": 0} for case, name in zip(held_out, said, strict=True)]
    healthy = read_json_object(raw / "dataset.json")["classification"]["negative_class"]
    return {**figures(rows, healthy), "no mask": None, "false mask": None}


def write(folder: Path, rows: list[dict[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> None:
    """All files."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "healthy_controls.csv") as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json_atomic(folder / "healthy_controls.json", found)
    header = ["treatment", *next(iter(found.values()))]
    text = tabulate([[name, *row.values()] for name, row in found.items()], header, "pipe", floatfmt=".3f")
    with atomic_path(folder / "healthy_controls.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
