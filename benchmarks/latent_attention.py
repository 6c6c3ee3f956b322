"""Paged latent attention decode on a GPU: time and memory bandwidth, beside PyTorch on gathered latents.

python benchmarks/latent_attention.py --out latent_attention.json

The released model's sizes in bf16. Each time is the median replay of a CUDA graph of one call, with a cold L2 cache.
The bytes needed are every latent, query and output once; the copy bandwidth they are compared with is measured first.
PyTorch gets its latents gathered already, without being charged for it, and its better way counts: matrix products and
a softmax, or `scaled_dot_product_attention` with the heads as queries.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltarl.kernels.gpu.latent_attention import Tiling, latent_attention_decode

HEADS, RANK, ROPE, PAGE = 32, 512, 64, 32
WIDTH = RANK + ROPE
SCALE = 192**-0.5
BATCHES = (1, 32, 128)
CONTEXTS = (1024, 8192, 65536)
Record = dict[str, Any]


def measure(split: int | None = None) -> list[Record]:
    """One record per shape that fits the current GPU's memory; `split` replaces the tiling's tokens per split."""
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth = copy_bandwidth(device)
    # Of the latents themselves as many bytes again are left for what the peers allocate.
    most = torch.cuda.mem_get_info(device)[0] // (2 * 2 * WIDTH)
    shapes = [(b, n) for b in BATCHES for n in CONTEXTS if b * n <= most]
    torch.manual_seed(0)
    tokens = max(b * n for b, n in shapes)
    pool = torch.empty(tokens // PAGE, PAGE, WIDTH, dtype=torch.bfloat16, device=device).normal_()
    return [measure_shape(pool[: b * n // PAGE], b, n, bandwidth, split) for b, n in shapes]


def measure_shape(pages: Tensor, batch: int, context: int, bandwidth: float, split: int | None) -> Record:
    q = torch.randn(batch, HEADS, WIDTH, dtype=pages.dtype, device=pages.device)
    table = torch.randperm(len(pages), device=pages.device).int().view(batch, -1)
    length = torch.full((batch,), context, device=pages.device)
    tiling = Tiling.of(q)
    if split is not None:
        tiling = replace(tiling, split=split)

    def ours() -> Tensor:
        return latent_attention_decode(q, pages, table, length, RANK, SCALE, tiling)

    gathered = pages.view(batch, context, WIDTH)  # other tokens than ours, as many
    seconds = median_seconds(ours)
    peers = {name: peer_seconds(peer, q, gathered) for name, peer in PEERS.items()}
    ran = [t for t in peers.values() if t is not None]
    needed = pages.nbytes + 2 * batch * HEADS * (WIDTH + RANK)
    return {
        "batch": batch,
        "context": context,
        "us": seconds * 1e6,
        "bytes": needed,
        "gb_per_s": needed / seconds / 1e9,
        "of_copy_bandwidth": needed / seconds / bandwidth,
        "copy_gb_per_s": bandwidth / 1e9,
        "torch_us": {name: None if t is None else t * 1e6 for name, t in peers.items()},
        "speedup": min(ran) / seconds if ran else None,
        "error": error_of_first_row(ours()[0], q[0], pages[table[0].long()].flatten(0, 1)),
    }


def matmul_peer(q: Tensor, latent: Tensor) -> Tensor:
    weight = (q @ latent.transpose(1, 2) * SCALE).softmax(-1)
    return weight @ latent[..., :RANK]


def sdpa_peer(q: Tensor, latent: Tensor) -> Tensor:
    keys = latent.unsqueeze(1)
    return F.scaled_dot_product_attention(q.unsqueeze(1), keys, keys[..., :RANK], scale=SCALE).squeeze(1)


PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"matmul": matmul_peer, "sdpa": sdpa_peer}


def peer_seconds(peer: Callable[[Tensor, Tensor], Tensor], q: Tensor, latent: Tensor) -> float | None:
    """None where it runs out of memory."""
    try:
        return median_seconds(lambda: peer(q, latent))
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def median_seconds(fn: Callable[[], Tensor]) -> float:
    """Of replays of `fn` as a CUDA graph, which leaves Python and the launches out."""
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fn()  # compiles
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # the graph has memory of its own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        fn()
    return do_bench(graph.replay, warmup=25, rep=150, quantiles=[0.5]) / 1e3


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy of 1 GiB, bytes read and written counted."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source))


def error_of_first_row(got: Tensor, q: Tensor, latent: Tensor) -> float:
    """‖error‖ / ‖reference in fp64‖."""
    weight = (q.double() @ latent.double().T * SCALE).softmax(-1)
    want = weight @ latent[:, :RANK].double()
    return float((got.double() - want).norm() / want.norm())


def table(records: list[Record]) -> str:
    """Markdown."""
    lines = [
        "| batch | context | µs | GB/s | of copy | torch matmul µs | torch SDPA µs | speed-up | error |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        peers = " | ".join("–" if r["torch_us"][name] is None else f"{r['torch_us'][name]:.1f}" for name in PEERS)
        speedup = "–" if r["speedup"] is None else f"{r['speedup']:.2f}"
        lines.append(
            f"| {r['batch']} | {r['context']} | {r['us']:.1f} | {r['gb_per_s']:.0f} | {r['of_copy_bandwidth']:.2f} "
            f"| {peers} | {speedup} | {r['error']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--split", type=int, help="tokens per split instead of the tiling's own, to tune it")
    args = parser.parse_args()
    records = measure(args.split)
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, copy {records[0]['copy_gb_per_s']:.0f} GB/s\n\n{table(records)}")
    if args.out is not None:
        machine = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
        args.out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
