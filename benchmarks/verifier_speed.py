"""Verdicts per second of both sides on one core, in turns, so that what else the machine does falls on both."""

import gc
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

from verifier_cases import boxed
from verifier_sides import PEER, Peer
from verifier_workload import Pair

from deltarl.reward.verifier import Verifier

_BATCH = 256  # of a rollout step: what a reward worker is given at once


@dataclass(frozen=True)
class Speed:
    """One turn: verdicts a second, latency in milliseconds, and how many pairs were accepted as they were made."""

    per_second: float
    p50_ms: float
    p99_ms: float
    as_made: int


def measure(workloads: dict[str, list[Pair]], peer_path: Path | None, rounds: int) -> dict[str, dict[str, Any]]:
    """Time both sides on each workload; the best of ``rounds`` turns of each, which other load disturbs least."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # worker and peer processes inherit it
    table: dict[str, dict[str, Any]] = {}
    for name, pairs in workloads.items():
        turns: dict[str, list[Speed]] = {}
        for _ in range(rounds):
            turns.setdefault("deltarl", []).append(_time_ours(pairs))
            if peer_path is not None:
                turns.setdefault(PEER, []).append(_time_peer(pairs, peer_path))
        best = {side: max(speeds, key=lambda speed: speed.per_second) for side, speeds in turns.items()}
        table[name] = {"pairs": len(pairs), "sides": {side: asdict(speed) for side, speed in best.items()}}
        table[name]["per_second_of_each_round"] = {side: [s.per_second for s in turns[side]] for side in turns}
    return table


def _time_ours(pairs: Sequence[Pair]) -> Speed:
    with _warm_verifier() as verifier:
        latencies = []
        for pair in pairs:
            started = time.perf_counter()
            verifier.score([pair.completion], [pair.gold])
            latencies.append(time.perf_counter() - started)
    with _warm_verifier() as verifier:
        scores: list[float | None] = []
        started = time.perf_counter()
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            verdicts = verifier.score([pair.completion for pair in batch], [pair.gold for pair in batch])
            scores.extend(verdict.score for verdict in verdicts)
        seconds = time.perf_counter() - started
    return _speed([score == 1.0 for score in scores], pairs, latencies, seconds)


def _warm_verifier() -> Verifier:
    """One whose worker runs and that has read nothing: what a module remembers of earlier turns is forgotten."""
    for found in gc.get_objects():
        if isinstance(found, _lru_cache_wrapper) and found.__module__.startswith("deltarl.reward"):
            found.cache_clear()
    verifier = Verifier()
    verifier.score([r"\boxed{\sqrt{3+2\sqrt2}}"], [r"1+\sqrt2"])
    return verifier


def _time_peer(pairs: Sequence[Pair], path: Path) -> Speed:
    with Peer(path) as peer:
        peer.judge(boxed(r"1+\sqrt2", "answer"), r"\boxed{\sqrt{3+2\sqrt2}}")
        replies = [peer.judge(boxed(pair.gold, "answer"), pair.completion) for pair in pairs]
    latencies = [seconds for _, seconds in replies]
    return _speed([accepted for accepted, _ in replies], pairs, latencies, sum(latencies))


def _speed(accepted: Sequence[bool], pairs: Sequence[Pair], latencies: Sequence[float], seconds: float) -> Speed:
    as_made = sum(accept == pair.right for accept, pair in zip(accepted, pairs, strict=True))
    cuts = statistics.quantiles(latencies, n=100)
    return Speed(len(pairs) / seconds, 1e3 * cuts[49], 1e3 * cuts[98], as_made)


def print_speed(table: dict[str, dict[str, Any]]) -> None:
    """Print the measurements as a Markdown table."""
    print("\nSpeed on one core\n")
    print("| pairs | side | verdicts/s | p50 ms | p99 ms | judged as made |\n|---|---|---|---|---|---|")
    for name, record in table.items():
        for side, speed in record["sides"].items():
            print(
                f"| {name}, {record['pairs']} | {side} | {speed['per_second']:,.0f} | {speed['p50_ms']:.2f} "
                f"| {speed['p99_ms']:.2f} | {100 * speed['as_made'] / record['pairs']:.1f} % |"
            )
