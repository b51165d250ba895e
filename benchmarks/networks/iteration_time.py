"""Time of one training iteration: nnUNetTrainerMultiTask against stock nnUNetTrainer, same plans, same batches.

    python benchmarks/networks/iteration_time.py -d 511 -p BrainTumPlans [-c 2d] [-device cpu] [-n 30]

Needs a preprocessed data set. Both trainers take turns on the same batches within one process, in an order that changes
from batch to batch; printed are medians, quartiles and the median of the paired ratios. Nothing is kept: results go to
a temporary folder.
"""

import argparse
import os
import statistics
import tempfile
import time

import torch


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="data-set id")
    parser.add_argument("-p", default="BrainTumPlans", help="plans; default: %(default)s")
    parser.add_argument("-c", default="2d", help="configuration; default: %(default)s")
    parser.add_argument("-f", type=int, default=0, help="fold; default: %(default)s")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-n", type=int, default=30, help="timed iterations of each; default: %(default)s")
    parser.add_argument("-warmup", type=int, default=3, help="default: %(default)s")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # noqa: SIM112  nnU-Net's own spelling
        from nnunetv2.run.run_training import get_trainer_from_args

        device = torch.device(args.device)
        torch.set_num_threads((os.cpu_count() or 1) if args.device == "cpu" else 1)
        trainers = {}
        for name in ("nnUNetTrainer", "nnUNetTrainerMultiTask"):
            trainer = get_trainer_from_args(args.d, args.c, args.f, name, args.p, device=device)
            trainer.initialize()
            trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
            trainer.network.train()
            trainers[name] = trainer
        batches, _ = trainers["nnUNetTrainer"].get_dataloaders()
        times: dict[str, list[float]] = {name: [] for name in trainers}
        for index in range(args.warmup + args.n):
            batch = next(batches)
            order = list(trainers) if index % 2 else list(reversed(trainers))
            for name in order:
                seconds = time_step(trainers[name], batch, device)
                if index >= args.warmup:
                    times[name].append(seconds)
        batches._finish()
    report(times, trainers["nnUNetTrainer"], args)


def time_step(trainer: object, batch: dict, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    trainer.train_step(batch)  # type: ignore[attr-defined]  # ends with a copy to the host, so it is complete
    return time.perf_counter() - started


def report(times: dict[str, list[float]], trainer: object, args: argparse.Namespace) -> None:
    configuration = trainer.configuration_manager  # type: ignore[attr-defined]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"\n{args.p} {args.c}, patch {configuration.patch_size}, batch {configuration.batch_size}, {where}")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:24} median {1000 * median:8.1f} ms   quartiles {1000 * low:8.1f} – {1000 * high:8.1f} ms")
    stock, ours = times["nnUNetTrainer"], times["nnUNetTrainerMultiTask"]
    ratios = [mine / theirs for mine, theirs in zip(ours, stock, strict=True)]
    print(
        f"ratio of medians {statistics.median(ours) / statistics.median(stock):.3f}, "
        f"median of paired ratios {statistics.median(ratios):.3f}, {len(ratios)} iterations each"
    )


if __name__ == "__main__":
    main()
