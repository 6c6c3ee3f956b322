"""How fast a version of the weights gets from the learner to the samplers, each way, beside copying the same bytes.

    OMP_NUM_THREADS=1 python benchmarks/publication.py --out benchmarks/results/publication_cpu.json
    python benchmarks/publication.py --megabytes 1024 8192 --out results.json        # on one GPU, or on two

The classes are those of a run, under Ray, with random weights: the object store and a broadcast over gloo on any
machine; on a GPU, handles too (learner and sampler share it); on two, a broadcast by NCCL. `copy` is one copy of all
tensors where the learner has them, `link`, of two GPUs, a copy from one to the other. All in turns in one run; medians
of the turns. `learner` is how long the learner is busy with it, `samplers` how long samplers are, which is after that.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from machine import describe
from torch import nn

from deltarl.actor import runtime
from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weight_meeting import Receiver
from deltarl.model.weights import WeightUpdate
from deltarl.rl.publisher import Publisher
from deltarl.rl.transport import Transport
from deltarl.rl.weight_offers import WeightOffers
from deltarl.rollout.worker import RolloutWorker

TURNS = 7


class Way(NamedTuple):
    """One way to publish: what it is called, its transport, whether over NCCL, and the GPU of each process."""

    name: str
    transport: Transport
    own_gpus: bool = False
    num_gpus: float = 0.0


class Learner:
    """Does of `rl.Learner` what publishing asks of it."""

    def __init__(self, megabytes: int):
        self._model, self._offers, self._version = model_of(megabytes), WeightOffers(), 0

    def listen(self, address: str) -> int:
        return self._offers.listen(address)

    def weights(self) -> WeightUpdate:
        self._version += 1
        return WeightUpdate.of(self._model, self._version)

    def offer_weights(self, transport: Transport, copy: bool, oldest: int) -> Any:
        self._version += 1
        state = {name: x.clone() if copy else x for name, x in self._model.state_dict().items()}
        notice = self._offers.offer(self._version, state, oldest)
        return self._offers.share(notice) if transport == "ipc" else notice

    def offered_weights(self, version: int) -> WeightUpdate:
        return self._offers.update(version)

    def copy(self) -> tuple[int, float]:
        """Bytes of the weights, and seconds that a copy of them takes."""
        tensors = list(self._model.state_dict().values())
        seconds = timed(lambda: [x.clone() for x in tensors])
        return sum(x.nbytes for x in tensors), seconds


class Engine:
    """Stands for a backend, and counts what it loads in another way than the one asked for."""

    def __init__(self, megabytes: int):
        self.model, self.kinds = model_of(megabytes), set[str]()

    def load_weights(self, update: Any) -> None:
        update.load_into(self.model)
        self.kinds.add(type(update).__name__)


class Sampler(RolloutWorker):
    def __init__(self, megabytes: int):
        self._engine = Engine(megabytes)
        self._receiver = Receiver()
        self._backend = self._engine  # type: ignore[assignment]  # it does not sample

    def kinds(self) -> set[str]:
        return self._engine.kinds


class Later:
    """In the place of `rl.Ahead`: keeps what samplers are to do."""

    def do(self, call: Callable[..., Any], *args: Any) -> None:
        self.asked = partial(call, *args)


def model_of(megabytes: int) -> nn.Module:
    """A hybrid in fp32 of about that size: layers of 32 MB."""
    layers = max(1, megabytes // 32)
    sizes = {"num_attention_heads": 8, "linear_num_heads": 8, "linear_head_dim": 64, "intermediate_size": 4096}
    latent = {"kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    config = hybrid_config(
        vocab_size=512, hidden_size=512, num_hidden_layers=layers, max_position_embeddings=512, **sizes, **latent
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # made where it is used: faster than moving it
        return HybridForCausalLM(config)


def ways() -> list[Way]:
    """What this machine has."""
    gpus = torch.cuda.device_count()
    share = 0.5 if gpus == 1 else 1.0 if gpus else 0.0
    found = [Way("object store", "object_store", num_gpus=share), Way("gloo", "collective", num_gpus=share)]
    if gpus:
        found.append(Way("ipc", "ipc", num_gpus=0.5))
    if gpus > 1:
        found.append(Way("nccl", "collective", own_gpus=True, num_gpus=1.0))
    return found


def measure(way: Way, megabytes: int, copy: bool) -> dict[str, Any]:
    """Seconds of each part, medians over `TURNS`, and what share of a copy's rate the whole reaches."""
    spec = {"num_cpus": 0.4, "num_gpus": way.num_gpus}
    learner = Gang("learner", WorkerSpec(Learner, (megabytes,), **spec), 1)
    samplers = Fleet("samplers", WorkerSpec(Sampler, (megabytes,), **spec), 1)
    later = Later()
    publisher = Publisher(way.transport, way.own_gpus, samplers, learner, later, copy)  # type: ignore[arg-type]  # `do` is all of it
    found: dict[str, list[float]] = {name: [] for name in ("copy", "learner", "samplers", "all")}
    try:
        for turn in range(TURNS + 1):
            size, copied = learner.broadcast("copy")[0]
            busy, loading = timed(publisher.publish), timed(lambda: later.asked())
            if turn:  # the first warms up
                for name, seconds in zip(found, (copied, busy, loading, busy + loading), strict=True):
                    found[name].append(seconds)
        if way.transport != "object_store" and samplers.map("kinds", [()]) != [{"Fetched"}]:
            raise RuntimeError(f"weights did not go by {way.name}")
    finally:
        samplers.close()
        learner.close()
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"way": way.name, "bytes": size, "seconds": medians, "all_to_copy": medians["all"] / medians["copy"]}


@ray.remote(num_gpus=2, num_cpus=0)
def link(megabytes: int) -> float:
    """Bytes/s of a copy between two GPUs."""
    here = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda:0")
    there = torch.empty_like(here, device="cuda:1")
    seconds = statistics.median(timed(lambda: there.copy_(here)) for _ in range(TURNS))
    return here.nbytes / seconds


def timed(work: Callable[[], Any]) -> float:
    """Seconds until it is done, on a GPU too."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter() - start


def row(result: Mapping[str, Any]) -> str:
    s, size = result["seconds"], result["bytes"]
    return (
        f"{size / 1e6:<6.0f} {result['way']:<13} {size / s['all'] / 1e9:8.2f} {result['all_to_copy']:10.1f} | "
        f"{s['copy']:8.4f} {s['learner']:9.4f} {s['samplers']:9.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--ways", nargs="+", help="of these alone, by name")
    parser.add_argument("--copy", action="store_true", help="as a learner that goes on while samplers load")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runtime.start(1.0, torch.cuda.is_available())
    found: dict[str, Any] = {"machine": describe(["ray", "torch"]), "copy": args.copy, "results": []}
    try:
        if torch.cuda.device_count() > 1:
            found["link_bytes_per_s"] = ray.get(link.remote(1024))
            print(f"link: {found['link_bytes_per_s'] / 1e9:.1f} GB/s")
        print("MB     way               GB/s  in copies | s: copy   learner  samplers")
        for megabytes in args.megabytes:
            for way in ways():
                if not args.ways or way.name in args.ways:
                    found["results"].append(measure(way, megabytes, args.copy))
                    print(row(found["results"][-1]), flush=True)
    finally:
        runtime.stop()
    if torch.cuda.is_available():
        found["machine"]["gpu"] = torch.cuda.get_device_name()
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
