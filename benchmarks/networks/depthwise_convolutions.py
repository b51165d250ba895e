r"""The two depthwise convolutions of large kernel attention against a dense 3x3 convolution of as many channels.

    python benchmarks/networks/depthwise_convolutions.py [-device cpu|cuda] [-dimensions 2 3] [-batch 4] \
        [-n 10] [-threads N]

Large kernel attention convolves each channel on its own with a kernel of 5 and with a dilated one of 7: few
multiply-adds, but not as little time. Timed are forward and backward of the convolutions alone, on the channels and
feature maps of a plan for patches of 128 (2-D) or 64 (3-D); the convolutions take turns, medians count. On CUDA the
types are those of autocast, cuDNN chooses by itself, and "without cuDNN" is torch's own depthwise kernel; on the CPU
"ours" is that of braintum.architectures.blocks.depthwise.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import torch
from tabulate import tabulate
from timing import times_in_turns
from torch import nn

from braintum.architectures.blocks.depthwise import replace_depthwise

STAGES = {2: ((32, 128), (64, 64), (128, 32), (256, 16), (512, 8)), 3: ((32, 64), (64, 32), (128, 16), (256, 8))}
"""Channels and edge of the feature maps, by dimension."""

CONVOLUTIONS = {"dense 3": (3, 1), "depthwise 5": (5, 1), "depthwise 7, dilation 3": (7, 3), "depthwise 7": (7, 1)}
"""Kernel and dilation."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-dimensions", type=int, nargs="+", default=[2, 3], choices=(2, 3))
    parser.add_argument("-batch", type=int, default=4, help="in 2-D, a quarter of it in 3-D; default: %(default)s")
    parser.add_argument("-n", type=int, default=10, help="repetitions; default: %(default)s")
    parser.add_argument("-threads", type=int, default=os.cpu_count(), help="on the CPU; default: %(default)s")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} thread(s), float32"
    for dimension in args.dimensions:
        batch = args.batch if dimension == 2 else max(1, args.batch // 4)
        print(f"\n{dimension}-D, batch {batch}, {where}: milliseconds forward and backward, and the ratio to dense 3\n")
        rows = []
        for channels, edge in STAGES[dimension]:
            image = torch.randn(batch, channels, *[edge] * dimension, device=device)
            times = times_in_turns(steps(dimension, channels, image), args.n, device)
            milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
            dense = milliseconds["dense 3"]
            cells = {name: f"{value:.2f} ({value / dense:.2f})" for name, value in milliseconds.items()}
            rows.append({"channels": channels, "feature map": "x".join([str(edge)] * dimension), **cells})
        print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True), flush=True)


def steps(dimension: int, channels: int, image: torch.Tensor) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    conv_op = nn.Conv2d if dimension == 2 else nn.Conv3d
    result = {}
    for name, (kernel, dilation) in CONVOLUTIONS.items():
        groups = channels if name.startswith("depthwise") else 1
        padding = dilation * (kernel - 1) // 2
        convolution = conv_op(channels, channels, kernel, padding=padding, dilation=dilation, groups=groups)
        result[name] = step_of(convolution.to(image.device), image, cudnn=True)
        if groups > 1 and image.is_cuda:
            result[f"{name} without cuDNN"] = step_of(convolution, image, cudnn=False)
        elif groups > 1:
            ours = nn.Sequential(convolution)
            replace_depthwise(ours)
            result[f"{name}, ours"] = step_of(ours, image, cudnn=True)
    return result


def step_of(convolution: nn.Module, image: torch.Tensor, cudnn: bool) -> Callable[[], None]:
    """Forward and backward pass, gradients of image and weights included."""
    image = image.clone().requires_grad_()

    def step() -> None:
        with (
            torch.backends.cudnn.flags(enabled=cudnn, benchmark=True),
            torch.autocast(image.device.type, enabled=image.is_cuda),
        ):
            output = convolution(image)
            output.backward(torch.ones_like(output))
        image.grad = None
        convolution.zero_grad()

    return step


if __name__ == "__main__":
    main()
