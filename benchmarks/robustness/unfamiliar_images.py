r"""How often images of other kinds look unfamiliar to a model's encoder.

    python benchmarks/robustness/unfamiliar_images.py MODEL_FOLDER \
        "FLAIR=brats2021/*/*_flair.nii.gz" "photographs=photos/*.png" -f 3 --held-out imagesTr

Held-out images of the fold fit what is familiar, as braintum_calibrate does; others of them, changed in several
ways, and the images of each given kind are judged. KIND#2=PATTERN takes the third channel of pictures, else
their mean counts; of volumes every tenth slice of the middle half is taken. Prints a table: images, share beyond
the limit, and how many of them the rules of the fingerprint warn of.
"""

import argparse
import glob
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import SimpleITK
from tabulate import tabulate

from braintum.evaluation.calibration.trust import fit_familiarity
from braintum.inference.api import load_predictor
from braintum.inference.prediction.case_streams import predict_stream
from braintum.inference.prediction.preprocessing import DOUBTS, ModelDescription, preprocess_array

CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "as they are": lambda image, random: image,
    "turned by 90°": lambda image, random: np.rot90(image).copy(),
    "upside down": lambda image, random: image[::-1].copy(),
    "cropped to the middle quarter": lambda image, random: image[
        image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 4 : -image.shape[1] // 4
    ],
    "inverted": lambda image, random: image.max() - image,
    "noise added, of the image's deviation": lambda image, random: image + random.normal(0, image.std(), image.shape),
    "noise alone": lambda image, random: abs(random.normal(0, 1000, image.shape)),
    "as CT: -1000 to 2000": lambda image, random: image * (3000 / image.max()) - 1000,
}


def read(file: Path, channel: str = "") -> list[np.ndarray]:
    """Slices (Y, X), float32."""
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).astype(np.float32)
    if image.ndim == 3 and image.shape[-1] in (3, 4):
        return [image[..., int(channel)] if channel else image[..., :3].mean(-1)]
    if image.ndim == 3 and len(image) > 1:
        return list(image[len(image) // 4 : -len(image) // 4 : 10])
    return [image.squeeze()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("kinds", nargs="*", metavar="KIND=PATTERN")
    parser.add_argument("-f", type=int, required=True, metavar="FOLD")
    parser.add_argument("--held-out", required=True, type=Path, metavar="FOLDER", help="imagesTr of the data set")
    parser.add_argument("--spacing", type=float, default=0.49, help="of slices, in mm; default: %(default)s")
    parser.add_argument("--fitted", type=int, default=300, help="held-out images to fit to; default: %(default)s")
    parser.add_argument("--limit", type=int, default=100, help="images of a kind; default: %(default)s")
    args = parser.parse_args()
    predictor = load_predictor(args.model, folds=[args.f], device="cpu", mirroring=False)
    model = ModelDescription.of(predictor)

    def look_at(images: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
        """Features, and how many images the rules warn of."""
        given = [
            preprocess_array(image[None].astype(np.float32), (args.spacing, args.spacing), model) for image in images
        ]
        cases = [(str(number), [data]) for number, (data, _) in enumerate(given)]
        found = predict_stream(predictor, predictor, cases, len(cases), exact=False, precision="float32")
        features = np.stack([case.evidence[0].features for case in found])
        return features, sum(bool(properties[DOUBTS]) for _, properties in given)

    validation = args.model / f"fold_{args.f}" / "validation" / "classification.json"
    names = sorted(json.loads(validation.read_text(encoding="utf-8"))["cases"])
    ending = model.dataset_json["file_ending"]
    images = [read(args.held_out / f"{name}_0000{ending}")[0] for name in names]
    judged = images[:: max(2, len(images) // args.limit)]
    known = [image for image in images if not any(image is other for other in judged)]
    features, _ = look_at(known[:: -(-len(known) // args.fitted)])
    familiar, _ = fit_familiarity(features, np.arange(len(features)) // 10)  # neighbours are often of one patient
    random = np.random.default_rng(0)
    rows = []

    def judge(kind: str, of_kind: list[np.ndarray]) -> None:
        features, warned = look_at(of_kind)
        ratio = familiar.distance(features) / familiar.limit
        rows.append([kind, len(ratio), f"{(ratio > 1).mean():.2f}", warned, f"{np.median(ratio):.2f}"])
        print(rows[-1], flush=True)

    for name, change in CHANGES.items():
        judge(f"held out, {name}", [change(image, random) for image in judged])
    for given in args.kinds:
        kind, _, pattern = given.partition("=")
        kind, _, channel = kind.partition("#")
        files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not files:
            parser.error(f"no file fits {pattern}")
        chosen = files[:: -(-len(files) // args.limit)]
        judge(kind, [image for file in chosen for image in read(file, channel) if np.ptp(image) > 0])
    header = ["images", "number", "beyond the limit", "warned of by the fingerprint", "distance / limit, median"]
    print(tabulate(rows, header, "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
