"""How fast a version of the weights gets from the learner to the samplers, each way, beside copying the same bytes.

    OMP_NUM_THREADS=1 python benchmarks/publication.py --out benchmarks/results/publication_cpu.json
    python benchmarks/publication.py --megabytes 1024 8192 --out results.json        # on one GPU, or on two

The classes are those of a run, under Ray, with random weights: the object store and a broadcast over gloo on any
machine; on a GPU, handles too (learner and sampler share it); on two, a broadcast by NCCL. `copy` is one copy of all
tensors where the learner has them, `link`, of two GPUs, a copy from one to the other. Each way in turns with the copy;
medians of the turns. `learner` is how long the learner is busy with it, `samplers` how long samplers are, after that.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """One way to publish: what it is called, its transport, and whether over NCCL."""

    name: str
    transport: Transport
    own_gpus: bool = False


class Learner:
    """Does of `rl.Learner` what publishing asks of it."""

    def __init__(self) -> None:
        self._offers, self._version = WeightOffers(), 0

    def make(self, megabytes: int) -> None:
        self._model = model_of(megabytes)

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
    """Stands for a backend, and keeps of which kinds the updates were that it loaded."""

    def __init__(self) -> None:
        self.model, self.kinds = nn.Module(), set[str]()

    def load_weights(self, update: Any) -> None:
        update.load_into(self.model)
        self.kinds.add(type(update).__name__)


class Sampler(RolloutWorker):
    def __init__(self) -> None:
        self._engine = Engine()
        self._receiver = Receiver()
        self._backend = self._engine  # type: ignore[assignment]  # it does not sample

    def make(self, megabytes: int) -> None:
        self._engine.model = model_of(megabytes)

    def kinds(self) -> set[str]:
        """Of what it loaded since this was last asked."""
        kinds, self._engine.kinds = self._engine.kinds, set()
        return kinds


class Later:
    """In the place of `rl.Ahead`: keeps what samplers are to do."""

    def do(self, call: Callable[..., Any], *args: Any) -> None:
        self.asked = partial(call, *args)


def model_of(megabytes: int) -> nn.Module:
    """A hybrid in fp32 of about that size, of 24 layers whatever the size."""
    heads = max(1, round((megabytes * 2**20 / 4 / (24 * 15 * 64 * 64)) ** 0.5))  # some 15 squares of the width a layer
    width = 64 * heads
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 24}
    heads_of = {"num_attention_heads": heads, "linear_num_heads": heads, "linear_head_dim": 64}
    latent = {"kv_lora_rank": width // 4, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    config = hybrid_config(vocab_size=512, max_position_embeddings=512, **sizes, **heads_of, **latent)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # made where it is used: faster than moving it
        return HybridForCausalLM(config)


def ways(names: Sequence[str] | None) -> Iterator[tuple[float, Sequence[Way]]]:
    """Of what this machine has, those of these names (or all), with the share of a GPU that each side has then."""
    gpus = torch.cuda.device_count()
    shared = [Way("object store", "object_store"), Way("gloo", "collective"), *([Way("ipc", "ipc")] if gpus else [])]
    own = [Way("nccl", "collective", own_gpus=True)] if gpus > 1 else []
    for share, found in ((0.5 if gpus else 0.0, shared), (1.0, own)):
        if asked := [way for way in found if not names or way.name in names]:
            yield share, asked


def measure_all(share: float, found: Sequence[Way], sizes: Sequence[int], copy: bool) -> Iterator[dict[str, Any]]:
    """Of each size and way, in megabytes: seconds of each part, and what share of a copy's rate the whole reaches."""
    learner = Gang("learner", WorkerSpec(Learner, (), num_cpus=0.4, num_gpus=share), 1)
    samplers = Fleet("samplers", WorkerSpec(Sampler, (), num_cpus=0.4, num_gpus=share), 1)
    try:
        for megabytes in sizes:
            learner.broadcast("make", megabytes)
            samplers.broadcast("make", megabytes)
            for way in found:
                yield measure(way, learner, samplers, copy)
    finally:
        samplers.close()
        learner.close()


def measure(way: Way, learner: Gang, samplers: Fleet, copy: bool) -> dict[str, Any]:
    """Medians over `TURNS`."""
    later = Later()
    publisher = Publisher(way.transport, way.own_gpus, samplers, learner, later, copy)  # type: ignore[arg-type]  # `do` is all of it
    found: dict[str, list[float]] = {name: [] for name in ("copy", "learner", "samplers", "all")}
    for turn in range(TURNS + 1):
        size, copied = learner.broadcast("copy")[0]
        busy, loading = timed(publisher.publish), timed(lambda: later.asked())
        if turn:  # the first warms up
            for name, seconds in zip(found, (copied, busy, loading, busy + loading), strict=True):
                found[name].append(seconds)
    expected = {"WeightUpdate" if way.transport == "object_store" else "Fetched"}
    if samplers.map("kinds", [()]) != [expected]:
        raise RuntimeError(f"weights did not go by {way.name}")
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
        for share, asked in ways(args.ways):
            for result in measure_all(share, asked, args.megabytes, args.copy):
                found["results"].append(result)
                print(row(result), flush=True)
    finally:
        runtime.stop()
    if torch.cuda.is_available():
        found["machine"]["gpu"] = torch.cuda.get_device_name()
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
