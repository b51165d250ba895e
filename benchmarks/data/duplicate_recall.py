"""Recall and precision of the duplicate search, with planted copies among neighbouring slices of the same patients.

    python benchmarks/data/duplicate_recall.py FOLDER [-n 400] [-np 2] [--seed 0]

FOLDER holds images, best of a data set with many slices a patient: every image is a distractor for the copies of all
others. For each transformation, -n images are copied; a found pair is right if both images come from one original.
Recall is the part of the copies that is paired with its original directly. Pairs among the originals themselves are
counted apart and printed: they are duplicates in the data, or false.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from braintum.conversion.duplicates.duplicates import DuplicatePair, match_fingerprints, read_fingerprints
from braintum.conversion.duplicates.image_reading import PIL_ENDINGS

Change = Callable[[Image.Image, random.Random], Image.Image]


def cropped(image: Image.Image, random_: random.Random, part: float) -> Image.Image:
    """Cuts off this part of width and height, shared at random between the opposite sides."""
    width, height = round(image.width * (1 - part)), round(image.height * (1 - part))
    x, y = random_.randint(0, image.width - width), random_.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def gamma(image: Image.Image, exponent: float) -> Image.Image:
    return image.point([round(255 * (value / 255) ** exponent) for value in range(256)])


def resized(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


TURN = Image.Transpose
CHANGES: dict[str, tuple[Change, int]] = {
    "mirrored left-right": (lambda image, _: ImageOps.mirror(image), 95),
    "mirrored top-bottom": (lambda image, _: ImageOps.flip(image), 95),
    "JPEG quality 50": (lambda image, _: image, 50),
    "resized to 224": (lambda image, _: resized(image, 224), 95),
    "mirrored, 224, quality 50": (lambda image, _: resized(ImageOps.mirror(image), 224), 50),
    "rotated 90°": (lambda image, _: image.transpose(TURN.ROTATE_90), 95),
    "rotated 180°": (lambda image, _: image.transpose(TURN.ROTATE_180), 95),
    "rotated 270°": (lambda image, _: image.transpose(TURN.ROTATE_270), 95),
    "transposed": (lambda image, _: image.transpose(TURN.TRANSPOSE), 95),
    "cropped 3 %": (lambda image, random_: cropped(image, random_, 0.03), 95),
    "cropped 3 % on each side": (lambda image, _: ImageOps.crop(image, round(0.03 * image.width)), 95),
    "cropped 3 %, mirrored": (lambda image, random_: ImageOps.mirror(cropped(image, random_, 0.03)), 95),
    "gamma 0.8": (lambda image, _: gamma(image, 0.8), 95),
    "gamma 1.2": (lambda image, _: gamma(image, 1.2), 95),
    "intensity × 0.7": (lambda image, _: image.point([round(0.7 * value) for value in range(256)]), 95),
    "cropped, gamma 0.8, 224, quality 50": (
        lambda image, random_: resized(gamma(cropped(image, random_, 0.03), 0.8), 224),
        50,
    ),
}
EXACT = "exact"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=400, help="copies a transformation; default: %(default)s")
    parser.add_argument("-np", type=int, default=2, help="worker processes; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def plant(originals: list[Path], folder: Path, n_copies: int, seed: int) -> tuple[list[Path], list[int], list[str]]:
    """Writes copies; returns their files, the index of the original of each, and its transformation."""
    random_ = random.Random(seed)
    paths, origins, names = [], [], []
    for number, name in enumerate([EXACT, *CHANGES]):
        for index in random_.sample(range(len(originals)), min(n_copies, len(originals))):
            path = folder / f"{number:02d}_{index}{originals[index].suffix if name == EXACT else '.jpg'}"
            if name == EXACT:
                shutil.copyfile(originals[index], path)
            else:
                change, quality = CHANGES[name]
                with Image.open(originals[index]) as image:
                    change(image.convert("L"), random_).save(path, quality=quality)
            paths.append(path)
            origins.append(index)
            names.append(name)
    return paths, origins, names


def report(pairs: list[DuplicatePair], originals: list[Path], origins: list[int], names: list[str]) -> None:
    """Prints the table, and the pairs among the originals."""
    n_originals = len(originals)
    origin_of = [*range(n_originals), *origins]
    found: dict[str, list[float]] = defaultdict(list)
    right, wrong, kinds = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    among_originals = []
    for pair in pairs:
        if pair.second < n_originals:
            among_originals.append(pair)
            continue
        same = origin_of[pair.first] == origin_of[pair.second]
        for index in {pair.first, pair.second}:
            if index >= n_originals:
                (right if same else wrong)[names[index - n_originals]] += 1
        if same and pair.first < n_originals:
            name = names[pair.second - n_originals]
            found[name].append(pair.score)
            kinds[name][pair.kind] += 1
    totals = Counter(names)
    print(f"\n{'transformation':38} copies  recall  precision  lowest score  kinds")
    for name in totals:
        recall, n_named = len(found[name]) / totals[name], right[name] + wrong[name]
        precision = right[name] / n_named if n_named else float("nan")
        lowest = min(found[name], default=float("nan"))
        told = ", ".join(f"{kind} {count}" for kind, count in kinds[name].most_common())
        print(f"{name:38} {totals[name]:6d}  {recall:6.4f}  {precision:9.4f}  {lowest:12.3f}  {told}")
    n_right, n_wrong = right.total(), wrong.total()
    print(
        f"{'all':38} {len(names):6d}  {sum(map(len, found.values())) / len(names):6.4f}  "
        f"{n_right / max(n_right + n_wrong, 1):9.4f}"
    )
    print(f"\n{len(among_originals)} pairs among the {n_originals} originals:")
    for pair in among_originals[:20]:
        files = f"{originals[pair.first].name} {originals[pair.second].name}"
        print(f"  {files} {pair.kind}, {pair.transformation}, {pair.score:.3f}")


def main() -> None:
    args = build_parser().parse_args()
    originals = sorted(path for path in args.folder.rglob("*") if path.name.lower().endswith(PIL_ENDINGS))
    if not originals:
        raise SystemExit(f"{args.folder}: no images")
    with tempfile.TemporaryDirectory() as folder:
        copies, origins, names = plant(originals, Path(folder), args.n, args.seed)
        start = time.perf_counter()
        prints = read_fingerprints([*originals, *copies], args.np)
        read = time.perf_counter()
        pairs = match_fingerprints(prints)
        matched = time.perf_counter()
    report(pairs, originals, origins, names)
    print(
        f"\n{len(prints)} images: reading {read - start:.1f} s ({args.np} processes), matching {matched - read:.1f} s"
    )


if __name__ == "__main__":
    main()
