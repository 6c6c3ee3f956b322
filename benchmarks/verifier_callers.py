"""Verdicts per second from a plain call, from asyncio and from a Ray actor, and what a killed worker costs.

    python benchmarks/verifier_callers.py --rounds 5

The pairs are those of `verifier_random.py`, in batches of a rollout step, the callers in turns. The actor's figures
contain sending it the completions and getting the scores back. CPU seconds are of the process that judges, its workers
and the caller; they hardly change with what else the machine does.
"""

import argparse
import asyncio
import os
import signal
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray
from verifier_cases import boxed
from verifier_pairs import random_pairs

from deltarl.reward.pool import WorkerPool
from deltarl.reward.verifier import Verifier

BATCH = 256
Batch = tuple[Sequence[str], Sequence[str]]
Scores = list[float | None]


class Judge:
    """A verifier that remembers nothing of the turn before, its worker started."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        with suppress(AttributeError):
            self.verifier.close()
        self.verifier = Verifier(timeout=20.0)  # however busy the machine is, all callers get the same verdicts
        self.verifier.score([r"\boxed{\sqrt{3+2\sqrt2}}"], [r"1+\sqrt2"])

    def score(self, completions: Sequence[str], golds: Sequence[str]) -> Scores:
        return [verdict.score for verdict in self.verifier.score(completions, golds)]

    def cpu_seconds(self) -> float:
        """Of this process and the verifier's."""
        return time.process_time() + sum(map(_cpu_seconds_of, self.verifier.pool.pids()))


def _cpu_seconds_of(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def plain(judge: Judge, batches: Sequence[Batch]) -> list[Scores]:
    return [judge.score(*batch) for batch in batches]


def in_asyncio(judge: Judge, batches: Sequence[Batch]) -> list[Scores]:
    async def run() -> list[Scores]:
        return await asyncio.gather(*(asyncio.to_thread(judge.score, *batch) for batch in batches))

    return asyncio.run(run())


def in_actor(actor: ray.actor.ActorHandle, batches: Sequence[Batch]) -> list[Scores]:
    return ray.get([actor.score.remote(*batch) for batch in batches])


def measure_callers(batches: Sequence[Batch], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds that each caller took in each round."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    judge, actor = Judge(), ray.remote(Judge).options(num_cpus=1).remote()
    here, there = judge.cpu_seconds, lambda: ray.get(actor.cpu_seconds.remote()) + time.process_time()
    callers = {
        "plain call": (lambda: plain(judge, batches), here),
        "asyncio": (lambda: in_asyncio(judge, batches), here),
        "Ray actor": (lambda: in_actor(actor, batches), there),
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in callers}
    for _ in range(rounds):
        results = []
        for name, (call, cpu_seconds) in callers.items():
            judge.renew()
            ray.get(actor.renew.remote())
            cpu, started = cpu_seconds(), time.perf_counter()
            results.append(call())
            turns[name].append((time.perf_counter() - started, cpu_seconds() - cpu))
        assert results[0] == results[1] == results[2]
    ray.shutdown()
    judge.verifier.close()
    return turns


def measure_kills(count: int) -> list[float]:
    """Milliseconds by which a killed worker delays the next item, which a new one has to be forked for."""
    delays = []
    with WorkerPool(timeout=10.0) as pool:

        def judge() -> float:
            started = time.perf_counter()
            pool.judge("x + 2x", "3x")
            return 1e3 * (time.perf_counter() - started)

        judge()
        for _ in range(count):
            usual = judge()
            os.kill(pool.pids()[1], signal.SIGKILL)
            time.sleep(0.05)
            delays.append(judge() - usual)
    return delays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6_600, help="pairs (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each caller (default %(default)s)")
    args = parser.parse_args()

    pairs = random_pairs(args.count, seed=1)
    batches = [
        ([boxed(pair.pred, "answer") for pair in pairs[i : i + BATCH]], [pair.gold for pair in pairs[i : i + BATCH]])
        for i in range(0, len(pairs), BATCH)
    ]
    turns = measure_callers(batches, args.rounds)
    wall, cpu = (min(column) for column in zip(*turns["plain call"], strict=True))
    print("| caller | verdicts/s | beside the plain call | CPU ms a verdict | beside the plain call |")
    print("|---|---|---|---|---|")
    for name, seconds in turns.items():
        best, least = (min(column) for column in zip(*seconds, strict=True))
        rate, price = len(pairs) / best, 1e3 * least / len(pairs)
        print(f"| {name} | {rate:,.0f} | {wall / best:.2f} | {price:.2f} | {least / cpu:.2f} |")
    delays = measure_kills(100)
    cuts = statistics.quantiles(delays, n=100)
    print(f"\nA killed worker delays the next item by {cuts[49]:.1f} ms (p99 {cuts[98]:.1f} ms).")


if __name__ == "__main__":
    main()
