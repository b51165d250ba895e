"""Time of evaluating predicted masks: synthetic ones, written to a temporary folder.

    python benchmarks/data/evaluation_speed.py [-n2d 1000] [-n3d 20] [-np 2]

2-D: PNG of 512×512 with one tumour. 3-D: NIfTI of 240×240×155 with the three BraTS regions. The time goes from files
to `summary.json` and includes the start of the worker processes.
"""

import argparse
import resource
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
from braintum.evaluation.metrics.segmentation_metrics import LabelOrRegion, metrics_on_folder

SHAPE_2D = (1, 512, 512)
SHAPE_3D = (155, 240, 240)
BRATS_REGIONS: list[LabelOrRegion] = [(1, 2, 3), (2, 3), (3,)]
GEOMETRY_3D = {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n2d", type=int, default=1000, help="2-D cases; default: %(default)s")
    parser.add_argument("-n3d", type=int, default=20, help="3-D cases; default: %(default)s")
    parser.add_argument("-np", type=int, default=2, help="worker processes; default: %(default)s")
    arguments = parser.parse_args()
    for number, is_3d in ((arguments.n2d, False), (arguments.n3d, True)):
        if number:
            measure(number, is_3d, arguments.np)


if __name__ == "__main__":
    main()
