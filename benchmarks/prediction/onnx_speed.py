"""Time of braintum_predict --onnx on the CPU against torch, and whether the results agree.

    python benchmarks/prediction/onnx_speed.py -m MODEL_FOLDER -i IMAGES [-f 0] [-slices 100] [-n 3]
    python benchmarks/prediction/onnx_speed.py --untrained-3d [-features 32] [-n 1]

The model is exported to a temporary folder first (braintum_export). Whole commands take turns, in bulk and in float32:
with torch, with onnxruntime, and with torch in bfloat16. Printed are medians of wall and processor time (user and
system), their ratios to torch's float32, and the agreement of masks and classes with it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from prediction_speed import (
    add_untrained_model,
    agreement,
    choose,
    class_agreement,
    complete_input,
    timed_command,
)
from tabulate import tabulate

OPTIONS = {
    "torch float32": ["-precision", "float32"],
    "onnxruntime": ["--onnx"],
    "torch bfloat16": ["-precision", "bfloat16"],
}
REFERENCE = "torch float32"
_ENDING = ".nii.gz"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, help="folder of a trained model")
    parser.add_argument("-i", type=Path, help=f"folder of {_ENDING} images")
    add_untrained_model(parser)
    parser.add_argument("-f", nargs="+", default=["0"], help="folds; default: %(default)s")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint; default: %(default)s")
    parser.add_argument("-slices", type=int, default=100, help="of the images; default: %(default)s")
    parser.add_argument("-n", type=int, default=3, help="rounds; default: %(default)s")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    model = ["-f", *args.f, "-chk", args.chk]
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        complete_input(parser, args, temporary)
        exported, images = temporary / "exported", temporary / "images"
        export = "import sys; from braintum.inference.export_cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", export, "-m", str(args.m), "-o", str(exported), *model], check=True)
        cases = choose(args.i, _ENDING, images, args.slices)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in OPTIONS}
        for turn in range(args.n):
            for name in list(OPTIONS)[turn % 3 :] + list(OPTIONS)[: turn % 3]:
                target = temporary / name
                source = exported if name == "onnxruntime" else args.m
                command = [
                    sys.executable,
                    "-c",
                    "import sys; from braintum.inference.cli import main; sys.exit(main())",
                ]
                command += ["-i", str(images), "-o", str(target), "-m", str(source), "-device", "cpu", *model]
                runs[name].append(timed_command([*command, *OPTIONS[name]], target, _ENDING))
                print(f"{name}: {runs[name][-1]['wall']:.1f} s", flush=True)
        medians = {
            name: {key: statistics.median(run[key] for run in found) for key in ("wall", "processor")}
            for name, found in runs.items()
        }
        rows = []
        for name, values in medians.items():
            row: dict[str, str] = {"": name}
            for key, seconds in values.items():
                row[f"{key} time, s"] = f"{seconds:.1f} ({seconds / medians[REFERENCE][key]:.2f})"
            masks = agreement(temporary / name, temporary / REFERENCE, _ENDING)
            classes = class_agreement(temporary / name, temporary / REFERENCE)
            row |= {"mean Dice": f"{masks['mean_dice']:.5f}", "voxels equal": f"{masks['equal_voxels']:.6f}"}
            row |= {"same class": f"{classes['same_class']:.3f}", "probability": f"{classes['largest_difference']:.1e}"}
            rows.append(row)
    print(f"\n{len(cases)} slices, {len(args.f)} fold(s); in brackets: against {REFERENCE}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
