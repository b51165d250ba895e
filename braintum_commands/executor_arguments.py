"""The arguments by which commands tell where jobs run."""

import argparse


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Where jobs run, and what they ask of SLURM."""
    where = parser.add_argument_group("where")
    where.add_argument("--on", choices=("local", "slurm"), default="local", help="default: %(default)s")
    where.add_argument("--at-once", type=int, help="jobs at the same time; default: one a GPU (SLURM: 256)")
    where.add_argument("--partition", help="of SLURM")
    where.add_argument("--time", type=int, metavar="MINUTES", help="limit of a turn on SLURM; default: 1440")
    where.add_argument("--mem", help="memory on SLURM; default: 32G")
    where.add_argument("--cpus", type=int, help="cores on SLURM; default: 12")
    where.add_argument("--stop-seconds", type=int, help="before the limit, to write a checkpoint in; default: 300")
