"""Time and memory of an audit, and how the time of the matching grows with the number of images.

    python benchmarks/data/audit_speed.py audit [--images FOLDER] [-n 6000] [--size 512] [--ending .jpg] [-np 2]
    python benchmarks/data/audit_speed.py growth [-n 6250 12500 25000 50000]

`audit` writes images (from a folder of real ones: each at first as it is, then turned by some degrees, which makes no
copy that the search looks for; else phantoms, below 256 pixels textures, which are drawn faster), mirrors every 20th
into a second folder, and runs the whole audit with its report; several numbers show how time and memory grow. `growth`
matches synthetic fingerprints, clustered as the slices of patients are, with planted copies, and prints the exponent of
the growth between sizes (n·log n has 1.1 there).
"""

import argparse
import math
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from braintum.conversion.audit.audit import run_audit
from braintum.conversion.audit.audit_input import input_from_folders
from braintum.conversion.audit.audit_report import write_audit
from braintum.conversion.duplicates.duplicate_index import N_VARIANTS, variant
from braintum.conversion.duplicates.duplicates import match_fingerprints
from braintum.conversion.duplicates.fingerprints import COARSE, FINE, Fingerprint
from braintum.conversion.duplicates.image_reading import PIL_ENDINGS
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.sources.phantoms import draw_patient, draw_slice

COPY_EVERY = 20
SLICES_PER_PATIENT = 10


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    audit = commands.add_parser("audit")
    audit.add_argument("--images", type=Path)
    audit.add_argument("-n", type=int, nargs="+", default=[6000], help="images, in ascending order; default: 6000")
    audit.add_argument("--size", type=int, default=512, help="of an image, in pixels; default: %(default)s")
    audit.add_argument("--ending", default=".jpg", choices=PIL_ENDINGS, help="default: %(default)s")
    audit.add_argument("-np", type=int, default=2, help="worker processes; default: %(default)s")
    growth = commands.add_parser("growth")
    growth.add_argument("-n", type=int, nargs="+", default=[6250, 12500, 25000, 50000])
    return parser


def draw(number: int, folder: Path, originals: list[Path], size: int, ending: str) -> None:
    """Writes the image of this number into `folder`/train, and every 20th, mirrored, into `folder`/test too."""
    if originals:
        with Image.open(originals[number % len(originals)]) as image:
            picture = image.convert("L").resize((size, size), Image.Resampling.BICUBIC)
        turns = number // len(originals)
        if turns:
            picture = picture.rotate(7 * turns, Image.Resampling.BICUBIC)
    elif size < 256:
        picture = draw_texture(number, size)
    else:
        patient_number, position = divmod(number, SLICES_PER_PATIENT)
        patient = draw_patient(np.random.default_rng(patient_number), patient_number % 3 + 1)
        level = (position + 0.5) / SLICES_PER_PATIENT - 0.5
        pixels, _ = draw_slice(np.random.default_rng([patient_number, position]), patient, size // 2, level)
        picture = Image.fromarray(np.clip(pixels / 12, 0, 255).astype(np.uint8)).resize((size, size))
    picture.save(folder / "train" / f"{number}{ending}", quality=90)
    if number % COPY_EVERY == 0:
        ImageOps.mirror(picture).save(folder / "test" / f"{number}{ending}", quality=75)


def draw_texture(number: int, size: int) -> Image.Image:
    """Blurred noise in a disc; three quarters of its variance are common to the slices of a patient."""
    patient, position = divmod(number, SLICES_PER_PATIENT)
    common = np.random.default_rng(patient)
    radius = common.uniform(0.35, 0.48, 2) * size
    noise = math.sqrt(0.75) * common.normal(size=(size, size))
    noise += 0.5 * np.random.default_rng([patient, position]).normal(size=(size, size))
    grid = np.indices((size, size), sparse=True)
    inside = sum(((axis - size / 2) / edge) ** 2 for axis, edge in zip(grid, radius, strict=True)) < 1
    grey = 128 + 160 * gaussian_filter(noise, 1.5)
    return Image.fromarray(np.where(inside, np.clip(grey, 20, 255), 0).astype(np.uint8))


def audit(images: Path | None, number: int, size: int, ending: str, n_processes: int) -> None:
    originals = sorted(images.rglob("*")) if images else []
    originals = [path for path in originals if path.name.lower().endswith(PIL_ENDINGS)]
    n_originals = round(number / (1 + 1 / COPY_EVERY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [folder / "train", folder / "test"]
        for side in sides:
            side.mkdir()
        drawing = partial(draw, folder=folder, originals=originals, size=size, ending=ending)
        run_cases(drawing, range(n_originals), n_processes, "drawing")
        start, before = time.perf_counter(), processor_seconds()
        result = run_audit(input_from_folders(sides), n_processes)
        write_audit(result, folder / "report")
        seconds = time.perf_counter() - start
        own, workers = (after - earlier for after, earlier in zip(processor_seconds(), before, strict=True))
        n_images, n_copies = len(result.source.images), len(list(sides[1].iterdir()))
    found = sum(pair.kind == "mirrored" for pair in result.pairs)
    # of the workers the system reports the largest only
    peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        f"{n_images} images of {size}×{size}: {seconds:.1f} s with {n_processes} processes; "
        f"processor {own:.1f} s here, {workers:.1f} s in workers"
    )
    print(f"{len(result.pairs)} pairs; {found} mirrored ones, planted were {n_copies}")
    print(f"memory: {peaks[0]:.2f} GiB here and at most {peaks[1]:.2f} GiB a worker", flush=True)


def processor_seconds() -> tuple[float, float]:
    """Processor time of this process, and of the workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return usages[0].ru_utime + usages[0].ru_stime, usages[1].ru_utime + usages[1].ru_stime


def synthetic_fingerprints(number: int, seed: int = 0) -> tuple[list[Fingerprint], int]:
    """Returns fingerprints and how many of them are copies.

    Clusters of ten stand for the slices of a patient: three quarters of their variance is common to them.
    """
    random = np.random.default_rng(seed)
    prints: list[Fingerprint] = []
    n_copies = 0
    while len(prints) < number:
        common = random.normal(size=(FINE, FINE))
        for _ in range(SLICES_PER_PATIENT):
            own = math.sqrt(0.75) * common + 0.5 * random.normal(size=(FINE, FINE))
            fine = gaussian_filter(own, 1.0, truncate=3)
            coarse = gaussian_filter(own, 4.0, truncate=3)[FINE // COARSE // 2 :: FINE // COARSE, :: FINE // COARSE]
            pictures = [_int8(fine), _int8(coarse[:COARSE, :COARSE])]
            prints.append(_print(len(prints), pictures))
            if len(prints) % COPY_EVERY == 0 and len(prints) < number:
                turned = [variant(picture, n_copies % N_VARIANTS) for picture in pictures]
                prints.append(_print(len(prints), turned))
                n_copies += 1
    return prints[:number], n_copies


def _int8(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.round(picture / picture.std() * 32), -127, 127).astype(np.int8)


def _print(number: int, pictures: list[np.ndarray]) -> Fingerprint:
    fine, coarse = (np.broadcast_to(picture, (2, *picture.shape)) for picture in pictures)
    return Fingerprint(str(number), (FINE, FINE), fine, coarse)


def growth(numbers: list[int]) -> None:
    earlier: tuple[int, float] | None = None
    for number in numbers:
        prints, n_copies = synthetic_fingerprints(number)
        start = time.process_time()
        pairs = match_fingerprints(prints)
        seconds = time.process_time() - start
        exponent = ""
        if earlier:
            exponent = f", exponent {math.log(seconds / earlier[1]) / math.log(number / earlier[0]):.2f}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{number:6d} fingerprints: {seconds:6.1f} s of processor time{exponent}; "
            f"{len(pairs)} pairs, planted were {n_copies}; peak {peak:.2f} GiB",
            flush=True,
        )
        earlier = number, seconds


def main() -> None:
    args = build_parser().parse_args()
    if args.command == "audit":
        for number in args.n:
            audit(args.images, number, args.size, args.ending, args.np)
    else:
        growth(args.n)


if __name__ == "__main__":
    main()
