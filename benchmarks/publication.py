"""How fast a version of the weights gets from the learner to a sampler, beside copying the same bytes in memory.

    OMP_NUM_THREADS=1 python benchmarks/publication.py --out benchmarks/results/publication_cpu.json

The stages are those of a run on CPUs or across nodes of one machine: the learner copies its weights and takes their
checksum, Ray's object store takes them, a sampler in another process verifies, copies and verifies again what arrived.
`copy` is one copy of all arrays by numpy. All in turns in one run; medians of the turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from machine import describe

from deltarl.actor import runtime
from deltarl.actor.host import WorkerSpec
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weights import WeightUpdate, checksum

TURNS = 7


class Receiver:
    """Stands for a sampler: times what `load_weights` does with an update."""

    def __init__(self, megabytes: int):
        self._model = model_of(megabytes)

    def load(self, update: WeightUpdate) -> float:
        start = time.perf_counter()
        update.load_into(self._model)
        return time.perf_counter() - start


def model_of(megabytes: int) -> HybridForCausalLM:
    """A hybrid in fp32 of about that size: layers of 32 MB."""
    layers = max(1, megabytes // 32)
    sizes = {"num_attention_heads": 8, "linear_num_heads": 8, "linear_head_dim": 64, "intermediate_size": 4096}
    latent = {"kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    config = hybrid_config(
        vocab_size=512, hidden_size=512, num_hidden_layers=layers, max_position_embeddings=512, **sizes, **latent
    )
    return HybridForCausalLM(config)


def measure(megabytes: int) -> dict[str, Any]:
    """Seconds of each stage, medians over `TURNS`, and what share of a copy's rate the whole reaches."""
    model = model_of(megabytes)
    worker = WorkerSpec(Receiver, (megabytes,), num_cpus=0.5).spawn()
    found: dict[str, list[float]] = {name: [] for name in ("copy", "collect", "put", "load", "all")}
    arrays = WeightUpdate.of(model, 0).arrays
    size = sum(array.nbytes for array in arrays.values())
    for version in range(TURNS + 1):
        copied = timed(lambda: [array.copy() for array in arrays.values()])[0]
        start = time.perf_counter()
        collected, update = timed(lambda version=version: WeightUpdate.of(model, version))
        put, ref = timed(lambda update=update: ray.put(update))
        loaded = ray.get(worker.load.remote(ref))
        whole = time.perf_counter() - start
        if version:  # the first warms up
            for name, seconds in zip(found, (copied, collected, put, loaded, whole), strict=True):
                found[name].append(seconds)
    ray.kill(worker)
    medians = {name: statistics.median(values) for name, values in found.items()}
    hashing = timed(lambda: checksum(arrays))[0]
    rates = {f"{name}_gb_per_s": size / seconds / 1e9 for name, seconds in medians.items()}
    return {
        "bytes": size,
        "seconds": medians | {"checksum": hashing},
        **rates,
        "all_to_copy": medians["all"] / medians["copy"],
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runtime.start(1.0, False)
    try:
        results = [measure(megabytes) for megabytes in args.megabytes]
    finally:
        runtime.stop()
    print("MB    GB/s of all  in copies | s: a copy  collecting  putting  loading  a checksum")
    for r in results:
        s = r["seconds"]
        print(
            f"{r['bytes'] / 1e6:<5.0f} {r['all_gb_per_s']:11.2f} {r['all_to_copy']:10.1f} | {s['copy']:9.3f} "
            f"{s['collect']:11.3f} {s['put']:8.3f} {s['load']:8.3f} {s['checksum']:11.3f}"
        )
    if args.out:
        args.out.write_text(json.dumps({"machine": describe(["ray", "torch"]), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
