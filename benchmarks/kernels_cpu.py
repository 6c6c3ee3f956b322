"""Our KDA on a CPU against transformers' own PyTorch code, a chunk-16 rewrite of it, and plain recurrent steps.

python benchmarks/kernels_cpu.py [--rounds 3] [--out kernels_cpu.json]          # about a minute

Prints three tables: forward and backward over whole sequences, with the ratio to transformers; how far each is from an
fp64 recurrence, for weak and strong decay; and one decode step. The sides take turns on one thread; figures are medians
of CPU milliseconds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.kimi_linear.modeling_kimi_linear import (
    chunk_kimi_delta_attention,
    recurrent_kimi_delta_attention,
)
from vs_trl_chunk16 import chunk16_kda

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.kernels.conv import short_conv_step
from deltarl.kernels.decode import DecodeState, decode_kda
from deltarl.kernels.gate import l2norm
from deltarl.kernels.kda import kda
from deltarl.kernels.precision import without_sampler

Side = Callable[..., Tensor]
SHAPES = ((4, 32), (4, 16), (2, 128))  # heads and their size; the first is the quickstart's, with a head more
GATES = (-0.05, -5.0)  # log decay per token
SLOW = "transformers"
BATCHES = (64, 256)
CPU = torch.device("cpu")


def ours_fp32(*tensors: Tensor) -> Tensor:
    with without_sampler():
        return kda(*tensors, use_qk_l2norm=True)[0]


SIDES: dict[str, Side] = {
    SLOW: lambda *x: chunk_kimi_delta_attention(*x, use_qk_l2norm_in_kernel=True)[0],
    "chunk-16 rewrite": lambda *x: chunk16_kda(*x)[0],
    "deltarl, fp64 core": lambda *x: kda(*x, use_qk_l2norm=True)[0],
    "deltarl, fp32 core": ours_fp32,
}


def sequences(batch: int, length: int, heads: int, dim: int, gate: float | None = None) -> list[Tensor]:
    """fp32 q, k, v, g `[B, T, H, D]` and beta `[B, T, H]` that want a gradient; a softplus gate where none is given."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(batch, length, heads, dim, generator=generator) for _ in range(4))
    g = -torch.nn.functional.softplus(g - 4) if gate is None else torch.full_like(g, gate)
    beta = torch.randn(batch, length, heads, generator=generator).sigmoid()
    return [x.requires_grad_() for x in (q, k, v, g, beta)]


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """CPU milliseconds of each call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return times


def medians(sides: dict[str, Callable[[], object]], rounds: int, repeats: int, once: str = "") -> dict[str, float]:
    """Median of each side, in turns; the side named `once`, too slow for more, gets one call a round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            if name != once:
                work()  # what the side before left in the caches is not measured
            times[name] += timed(work, 1 if name == once else repeats)
    return {name: statistics.median(ms) for name, ms in times.items()}


def training(rounds: int, heads: int, dim: int, gate: float | None = None) -> dict[str, float]:
    """Forward and backward of 64 sequences of 64 tokens; with a `gate`, without transformers, which no gate slows."""
    tensors = sequences(64, 64, heads, dim, gate)
    weight = torch.randn(64, 64, heads, dim)

    def step(side: Side) -> None:
        torch.autograd.grad(side(*tensors), tensors, weight)

    sides = {n: lambda side=side: step(side) for n, side in SIDES.items() if gate is None or n != SLOW}
    return medians(sides, rounds, 5, SLOW)


def errors(gate: float) -> dict[str, tuple[float, float]]:
    """Largest error of the output, and of any gradient, relative to the largest value that it should have."""
    tensors = sequences(2, 64, 4, 32, gate)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    weight = torch.randn(2, 64, 4, 32, generator=torch.Generator().manual_seed(1))
    want = kda(*exact, use_qk_l2norm=True, backend="recurrent")[0]
    wants = [want.detach(), *torch.autograd.grad(want, exact, weight.double())]
    found = {}
    for name, side in SIDES.items():
        out = side(*tensors)
        gots = [out.detach(), *torch.autograd.grad(out, tensors, weight)]
        error = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(gots, wants, strict=True)]
        found[name] = (error[0], max(error[1:]))
    return found


def inplace_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The recurrence of one token `[B, H, ·]` in as few and as lean calls as PyTorch has; `state` `[B, H, K, V]`."""
    q, k, state = l2norm(q).flatten(0, 1) * q.shape[-1] ** -0.5, l2norm(k).flatten(0, 1), state.flatten(0, 1)
    state.mul_(g.flatten(0, 1).exp_().unsqueeze(-1))
    error = torch.baddbmm(v.flatten(0, 1).unsqueeze(1), k.unsqueeze(1), state, alpha=-1).mul_(beta.reshape(-1, 1, 1))
    state.baddbmm_(k.unsqueeze(2), error)
    return torch.bmm(q.unsqueeze(1), state).view_as(v)


def decode_steps(batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """One step of `batch` sequences at all offsets within a chunk, in one layer of 4 heads of 32."""
    q, k, v, g, beta = (x.detach().squeeze(1) for x in sequences(batch, 1, 4, 32))
    plain, inplace = torch.zeros(batch, 4, 32, 32), torch.zeros(batch, 4, 32, 32)
    tokens = [x.unsqueeze(1) for x in (q, k, v, g, beta)]
    yield (
        "transformers, recurrent",
        lambda: plain.copy_(
            recurrent_kimi_delta_attention(*tokens, plain, output_final_state=True, use_qk_l2norm_in_kernel=True)[1]
        ),
    )
    yield "in-place recurrence, fp32", lambda: inplace_step(q, k, v, g, beta, inplace)

    def ours(cache: DecodeState) -> Callable[[], object]:
        position = torch.arange(batch)

        def step() -> None:
            decode_kda(q, k, v, g, beta, 32**-0.5, cache, position % CHUNK_SIZE, use_qk_l2norm=True)
            position.add_(1)

        return step

    yield "deltarl, fp64 core", ours(DecodeState.empty(batch, 4, 32, 32, CPU))
    with without_sampler():
        yield "deltarl, fp32 core", ours(DecodeState.empty(batch, 4, 32, 32, CPU))
    x, weight, window = torch.randn(batch, 3 * 128), torch.randn(3 * 128, 4), torch.zeros(batch, 3, 3 * 128)
    yield "(convolution of q, k, v)", lambda: short_conv_step(x, weight, window)


def table(header: list[str], rows: dict[str, list[str]]) -> str:
    lines = [" | ".join(["", *header]), "---".join("|" * (len(header) + 2))]
    return "\n".join(
        [f"|{lines[0]} |", lines[1], *(f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds are seconds then, whatever else the machine does
    train = {f"{heads} x {dim}": training(args.rounds, heads, dim) for heads, dim in SHAPES}
    (heads, dim), strong = SHAPES[0], GATES[-1]
    name = f"{heads} x {dim}"
    train[f"{name}, decay {strong}"] = train[name] | training(args.rounds, heads, dim, strong)
    wrong = {str(gate): errors(gate) for gate in GATES}
    with torch.no_grad():
        decode = {f"B={b}": medians(dict(decode_steps(b)), 5 * args.rounds, 32) for b in BATCHES}

    print("Forward and backward, B=64, T=64, CPU ms (times as fast as transformers), by heads x size\n")
    rows = {n: [f"{t[n]:,.0f} ({t[SLOW] / t[n]:.1f}x)" for t in train.values()] for n in SIDES}
    print(table(list(train), rows))
    print("\nLargest relative error of output / of any gradient, by log decay per token\n")
    print(table(list(wrong), {n: [f"{e[n][0]:.0e} / {e[n][1]:.0e}" for e in wrong.values()] for n in SIDES}))
    print("\nOne decode step of a layer of 4 heads of 32, CPU ms\n")
    print(table(list(decode), {n: [f"{t[n]:.2f}" for t in decode.values()] for n in next(iter(decode.values()))}))
    if args.out:
        args.out.write_text(json.dumps({"training": train, "errors": wrong, "decode": decode}, indent=1) + "\n")


if __name__ == "__main__":
    main()
