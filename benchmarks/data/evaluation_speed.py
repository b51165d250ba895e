"""Time of evaluating predicted masks: synthetic ones, written to a temporary folder.

    python benchmarks/data/evaluation_speed.py [-n2d 1000] [-n3d 20] [-np 2]
    python benchmarks/data/evaluation_speed.py --growth 1000 10000 100000 [-np 2]

2-D: PNG of 512×512 with one tumour. 3-D: NIfTI of 240×240×155 with the three BraTS regions. The time goes from files
to `summary.json` and includes the start of the worker processes.

`--growth` runs `braintum_evaluate` and `braintum_report` on the validation of a fold with so many slices of 64×64, ten
a patient, of three classes, one of them healthy. Processor time (user and system) is that of a command with its
workers, peak memory that of the largest of these processes.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import gaussian_filter

from braintum.conversion.files.parallel import run_cases
from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation.metrics.segmentation_metrics import LabelOrRegion, metrics_on_folder

SHAPE_2D = (1, 512, 512)
SHAPE_3D = (155, 240, 240)
BRATS_REGIONS: list[LabelOrRegion] = [(1, 2, 3), (2, 3), (3,)]
GEOMETRY_3D = {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}

CLASSES = ("glioma", "meningioma", "no_tumor")
SLICES_PER_PATIENT = 10
SMALL = (1, 64, 64)
DATASET, MODEL = "Dataset999_Growth", "nnUNetTrainerMultiTask__BrainTumPlans__2d"


def draw(number: int, folder: Path, shape: tuple[int, int, int], n_labels: int) -> None:
    """Writes a tumour of nested labels with a rough outline, and a prediction that lies a little beside it."""
    random = np.random.default_rng(number)
    rough = gaussian_filter(random.standard_normal(shape), 3)
    rough *= 0.15 / rough.std()
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    centre = {axis: shape[axis] * random.uniform(0.35, 0.65) for axis in axes}
    radius = {axis: shape[axis] * random.uniform(0.1, 0.2) for axis in axes}
    for side, shift in (("reference", 0.0), ("prediction", 0.08)):
        grid = np.indices(shape, sparse=True)
        distance = sum(((grid[axis] - centre[axis]) / radius[axis] - shift) ** 2 for axis in axes) ** 0.5
        distance = distance + (1 + shift) * rough
        levels = np.linspace(1, 0, n_labels, endpoint=False)
        seg = sum((distance < level).astype(np.uint8) for level in levels)
        if n_labels == 1:
            NaturalImage2DIO().write_seg(seg, str(folder / side / f"case_{number:04}.png"), {})
        else:
            SimpleITKIO().write_seg(seg, str(folder / side / f"case_{number:04}.nii.gz"), GEOMETRY_3D)


def processor_seconds() -> float:
    """Processor time of this process and of the workers that have ended: less disturbed by other programs."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(number: int, is_3d: bool, n_processes: int) -> None:
    """Writes this many cases and prints how long their evaluation takes."""
    reader: BaseReaderWriter = SimpleITKIO() if is_3d else NaturalImage2DIO()
    shape, labels = (SHAPE_3D, BRATS_REGIONS) if is_3d else (SHAPE_2D, [1])
    ending = ".nii.gz" if is_3d else ".png"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference, prediction = folder / "reference", folder / "prediction"
        reference.mkdir()
        prediction.mkdir()
        drawing = partial(draw, folder=folder, shape=shape, n_labels=len(labels))
        run_cases(drawing, range(number), n_processes, "drawing")
        start, processor = time.perf_counter(), processor_seconds()
        summary = metrics_on_folder(
            str(reference),
            str(prediction),
            str(folder / "summary.json"),
            reader,
            ending,
            labels,
            num_processes=n_processes,
        )
        seconds, processor = time.perf_counter() - start, processor_seconds() - processor
    figures = ", ".join(f"{metric} {summary['foreground_mean'][metric]:.3f}" for metric in ("Dice", "HD95", "ASSD"))
    size = "×".join(str(length) for length in shape if length > 1)
    print(
        f"{number} cases of {size}, {n_processes} processes: {seconds:.1f} s, processor {processor:.1f} s "
        f"({figures} {summary['length_unit']})"
    )


def draw_slice(number: int, labels: Path, predictions: Path) -> None:
    """Writes a small disc and a prediction that lies beside it; healthy slices are empty, one in 20 of them not."""
    random = np.random.default_rng(number)
    grid = np.indices(SMALL[1:], sparse=True)
    centre, radius = random.uniform(24, 40, 2), random.uniform(4, 16)
    healthy = patient_class(number) == "no_tumor"
    for folder, visible in ((labels, not healthy), (predictions, not healthy or random.random() < 0.05)):
        distance = sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True))
        seg = ((distance < radius**2) & visible).astype(np.uint8)[None]
        NaturalImage2DIO().write_seg(seg, str(folder / f"{case_name(number)}.png"), {})
        centre, radius = centre + random.normal(0, 2, 2), radius * random.uniform(0.7, 1.2)


def case_name(number: int) -> str:
    return f"case_{number:06}"


def patient_class(number: int) -> str:
    return CLASSES[number // SLICES_PER_PATIENT % len(CLASSES)]


def class_result(number: int) -> dict[str, object]:
    random = np.random.default_rng([number, 1])
    logits = random.normal(size=len(CLASSES))
    logits[CLASSES.index(patient_class(number))] += 2.5
    values = np.exp(logits) / np.exp(logits).sum()
    return {
        "predicted_class": CLASSES[int(values.argmax())],
        "probabilities": dict(zip(CLASSES, values.round(6).tolist(), strict=True)),
    }


def write_model(root: Path, number: int, n_processes: int) -> Path:
    """nnU-Net's folders after the validation of a fold of this many slices; returns the model's."""
    raw, preprocessed = root / "raw" / DATASET, root / "preprocessed" / DATASET
    model = root / "results" / DATASET / MODEL
    labels, validation = preprocessed / "gt_segmentations", model / "fold_0" / "validation"
    for folder in (raw / "imagesTr", labels, validation):
        folder.mkdir(parents=True)
    description = {
        "channel_names": {"0": "T1ce"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": number,
        "file_ending": ".png",
        "classification": {"class_names": list(CLASSES), "negative_class": "no_tumor"},
    }
    plans = {"dataset_name": DATASET, "plans_name": "BrainTumPlans", "configurations": {"2d": {"patch_size": [64, 64]}}}
    results = {"cases": {case_name(index): class_result(index) for index in range(number)}}
    for file, content in (
        (raw / "dataset.json", description),
        (model / "dataset.json", description),
        (model / "plans.json", plans),
        (validation / "summary.json", {}),
        (validation / "classification.json", results),
    ):
        file.write_text(json.dumps(content), encoding="utf-8")
    patients = [f"patient_{index // SLICES_PER_PATIENT:05}" for index in range(number)]
    rows = [Case(case_name(index), patient_class(index), patient) for index, patient in enumerate(patients)]
    write_cases(preprocessed / "cases.csv", rows)
    run_cases(partial(draw_slice, labels=labels, predictions=validation), range(number), n_processes, "drawing")
    for index in range(number):  # the picture of a slice is its mask
        os.link(labels / f"{case_name(index)}.png", raw / "imagesTr" / f"{case_name(index)}_0000.png")
    return model


def growth(number: int, n_processes: int, keep: Path | None) -> None:
    """Writes a model of this many cases and prints what evaluation and report of it need."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        root = Path(name)
        model = write_model(root, number, n_processes)
        os.environ |= {f"nnUNet_{part}": str(root / part) for part in ("raw", "preprocessed", "results")}
        arguments = ["-d", "999", "-p", "BrainTumPlans", "-tr", "nnUNetTrainerMultiTask", "-c", "2d"]
        for command, module in (
            ("braintum_evaluate", "braintum.evaluation.cli"),
            ("braintum_report", "braintum.evaluation.report_cli"),
        ):
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *arguments]
                + ["-np", str(n_processes)],
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            if os.waitstatus_to_exitcode(status):
                sys.exit(f"{command} failed")
            processor = usage.ru_utime + usage.ru_stime
            print(
                f"{command:17} of {number:6} cases: {seconds:6.1f} s, processor {processor:6.1f} s, "
                f"memory {usage.ru_maxrss / 2**20:.2f} GiB",
                flush=True,
            )
        written = model / "crossval_results_folds_0"
        sizes = [f"{file} {(written / file).stat().st_size / 1e6:.1f} MB" for file in ("summary.json", "report.html")]
        print(f"{'':17} {', '.join(sizes)}", flush=True)
        if keep is not None:
            shutil.copytree(written, keep / str(number), dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n2d", type=int, default=1000, help="2-D cases; default: %(default)s")
    parser.add_argument("-n3d", type=int, default=20, help="3-D cases; default: %(default)s")
    parser.add_argument("-np", type=int, default=2, help="worker processes; default: %(default)s")
    parser.add_argument("--growth", type=int, nargs="+", metavar="N", help="numbers of slices for the commands")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where --growth leaves tables and report")
    arguments = parser.parse_args()
    if arguments.growth:
        for number in arguments.growth:
            growth(number, arguments.np, arguments.keep)
        return
    for number, is_3d in ((arguments.n2d, False), (arguments.n3d, True)):
        if number:
            measure(number, is_3d, arguments.np)


if __name__ == "__main__":
    main()
