"""A folder of images predicted in parts: it is listed once, each part is a job, and the last job makes the tables."""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

from braintum.experiments.definition import Slurm
from braintum.experiments.jobs import Experiment, Job, program

PARTS_FOLDER = "parts"


def prediction_experiment(args: argparse.Namespace, slurm: Slurm) -> Experiment:
    """The jobs; the input folder is listed here, unless an earlier command did.

    Args:
        args: of ``braintum_run predict``.
        slurm: what is asked of it.

    Raises:
        ValueError: the folder could not be listed; the command has said why.
    """
    output = Path(args.o).absolute()
    folder = output / "run"
    parts = folder / PARTS_FOLDER
    command = [program("braintum_predict"), *args.arguments, "-o", str(output), "-device", args.device]
    files = [parts / f"part_{number:05d}.json" for number in range(args.num_parts)]
    if sorted(parts.glob("part_*.json")) != files:
        listing = [*command, "-num_parts", str(args.num_parts), "--write-parts", str(parts)]
        if subprocess.run(listing, check=False).returncode != 0:
            raise ValueError(f"{output}: the input could not be listed, see above")
    jobs = [
        Job(
            file.stem,
            [[*command, "--part", str(file), "--continue_prediction", "--disable_progress_bar"]],
            gpus=int(args.device == "cuda"),
        )
        for file in files
    ]
    merge = Job("merge", [[*command, "--merge-parts", str(parts)]], [job.name for job in jobs])
    return Experiment(folder, [*jobs, merge], {}, asdict(slurm), args.device)
