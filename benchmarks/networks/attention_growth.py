r"""Adaptive masked attention against dense attention, from 256 to 16 384 tokens: time and peak memory, and who wins.

    python benchmarks/networks/attention_growth.py [-device cpu|cuda] [-features 256] [-batch 1] [-repeats 5] \
        [-threads N]

Both are modules with the same projections; dense attention is torch's scaled_dot_product_attention, on CUDA in the type
that training uses there (float16, hence flash attention), on the CPU in float32. Timed are forward and backward. The
two take turns, the best of all repeats counts. Peak memory is what the allocator holds at most beyond the inputs and
the weights. The exponent is the growth of time from one row to the next: 1 is linear, 2 quadratic.
"""

import argparse
import math
import os
from collections.abc import Callable

import torch
from timing import peak_on_cpu, times_in_turns
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.adaptive_masked_attention import AdaptiveMaskedAttention
from braintum.architectures.blocks.bt_block import HEAD_FEATURES

EDGES = (16, 24, 32, 48, 64, 96, 128)  # of a square grid of tokens
WINDOW_SIZE = (8, 8)


class DenseAttention(nn.Module):
    """Every token attends to every token."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)

    def forward(self, tokens: torch.Tensor, low_level: torch.Tensor) -> torch.Tensor:
        """As adaptive masked attention, without a use for low-level features."""
        parts = self.queries_keys_values(tokens.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, d)
        queries, keys, values = (part.transpose(1, 2) for part in parts.unbind(2))
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        return self.project(attended.transpose(1, 2).reshape(tokens.shape))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-features", type=int, default=256, help="of a token, in heads of 32; default: %(default)s")
    parser.add_argument("-k", type=int, default=256, help="tokens of the sparse branch; default: %(default)s")
    parser.add_argument("-batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("-repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("-threads", type=int, default=os.cpu_count(), help="on the CPU; default: %(default)s")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    heads = args.features // HEAD_FEATURES
    modules = {
        "masked": AdaptiveMaskedAttention(args.features, args.features, heads, WINDOW_SIZE, args.k).to(device),
        "dense": DenseAttention(args.features, heads).to(device),
    }
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(f"{where}; {args.features} features, {heads} heads, k = {args.k}, batch {args.batch}, forward and backward")
    print("tokens   masked ms  dense ms  ratio   masked MB  dense MB  ratio   exponent of masked, dense")
    rows: list[tuple[int, dict[str, float], dict[str, float]]] = []
    for edge in EDGES:
        inputs = [torch.randn(args.batch, edge, edge, args.features, device=device) for _ in range(2)]
        steps = {name: training_step(module, inputs) for name, module in modules.items()}
        times = times_in_turns(steps, args.repeats, device)
        seconds = {name: min(values) for name, values in times.items()}
        memory = {name: peak_bytes(step, device) for name, step in steps.items()}
        growth = ""
        if rows:
            before, earlier, _ = rows[-1]
            growth = ", ".join(
                f"{math.log(seconds[name] / earlier[name]) / math.log(edge**2 / before):5.2f}" for name in modules
            )
        rows.append((edge**2, seconds, memory))
        print(f"{edge**2:6} {columns(seconds, 1e3)} {columns(memory, 1e-6)}   {growth}", flush=True)
    report_crossover("time", [(tokens, seconds) for tokens, seconds, _ in rows])
    report_crossover("memory", [(tokens, memory) for tokens, _, memory in rows])


def training_step(module: nn.Module, inputs: list[torch.Tensor]) -> Callable[[], None]:
    """Forward and backward under the autocast of the device's training."""
    device = inputs[0].device.type
    tokens = inputs[0].requires_grad_()

    def step() -> None:
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            attended = module(tokens, inputs[1])
        attended.backward(torch.ones_like(attended))
        module.zero_grad(set_to_none=True)
        tokens.grad = None

    return step


def peak_bytes(step: Callable[[], None], device: torch.device) -> float:
    """Bytes that the allocator holds at most while the step runs, beyond what it held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    return peak_on_cpu(step)


def columns(values: dict[str, float], factor: float) -> str:
    masked, dense = values["masked"], values["dense"]
    return f"{factor * masked:11.1f} {factor * dense:9.1f} {masked / dense:6.2f}"


def report_crossover(quantity: str, rows: list[tuple[int, dict[str, float]]]) -> None:
    """The number of tokens from which on the masked attention takes less."""
    cheaper = [values["masked"] < values["dense"] for _, values in rows]
    first = next((index for index in range(len(rows)) if all(cheaper[index:])), None)
    if first is None:
        print(f"{quantity}: dense attention takes less at {rows[-1][0]} tokens")
    else:
        print(f"{quantity}: masked attention takes less from {rows[first][0]} tokens on")


if __name__ == "__main__":
    main()
