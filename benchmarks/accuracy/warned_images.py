r"""How often a ready model warns of images, by kind.

    python benchmarks/accuracy/warned_images.py [--model NAME] "FLAIR=brats2021/*/*_flair.nii.gz" "photographs=photos/*"

Each kind is a name and a pattern of files. Of images like those of the training hardly any should be warned of, of all
others each. Prints a table of the kinds: images, those with a warning, those that were refused.
"""

import argparse
import glob
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from braintum.inference.ready_models import predict_with_ready_model


def row(kind: str, files: list[Path], model: str | None) -> list[Any]:
    """Of one kind."""
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary, "images")
        images.mkdir()
        for number, file in enumerate(files):
            (images / f"{number:04d}_{file.name}").symlink_to(file.resolve())
        _, outcome = predict_with_ready_model(images, Path(temporary, "output"), model, mirroring=False)
    warned = [result for result in outcome.results if result["warnings"]]
    first = next(iter([*(result["warnings"][0] for result in warned), *outcome.failed.values()]), "")
    return [kind, len(files), len(warned), len(outcome.failed), first[:60]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", metavar="KIND=PATTERN")
    parser.add_argument("--model", help="default: the one that predicts by default")
    parser.add_argument("--limit", type=int, default=100, help="images of a kind; default: %(default)s")
    args = parser.parse_args()
    rows = []
    for given in args.kinds:
        kind, _, pattern = given.partition("=")
        files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        if not files:
            parser.error(f"no file fits {pattern}")
        rows.append(row(kind, files[:: -(-len(files) // args.limit)], args.model))
    print(tabulate(rows, ["kind", "images", "warned of", "refused", "such as"], "pipe"))


if __name__ == "__main__":
    main()
