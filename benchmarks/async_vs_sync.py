"""The quickstart, synchronous and with samplers ahead of the learner: time to an accuracy, waiting, staleness.

    python benchmarks/async_vs_sync.py --out benchmarks/results/async_vs_sync.json

All runs start from one warm-started model and run under Ray, one after the other; rounds go through all of them, so
that what else the machine does meets each. The curves of the rounds are the same: only times differ. Runs are in
--folder, which is to be empty.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import describe

from deltarl.rl.jsonl import read_jsonl

ROOT = Path(__file__).parents[1]
RECIPE = "configs/quickstart.yaml"
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="values of rollout.max_staleness")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.4, 0.6, 0.8], help="held-out pass@1")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "async_vs_sync")
    parser.add_argument("--out", type=Path, help="write all rows as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, e.g. learner.num_ranks=1")
    args = parser.parse_intermixed_args()
    run("rl/run_sft.py", "start", args.folder, args.overrides)
    runs: dict[int, list[Rows]] = {staleness: [] for staleness in args.staleness}
    for number in range(args.rounds):
        for staleness in args.staleness:
            name = f"ahead_{staleness}_{number}"
            shutil.copytree(args.folder / "start" / "initial", args.folder / name / "initial", symlinks=True)
            run("rl/run_grpo.py", name, args.folder, [f"rollout.max_staleness={staleness}", *args.overrides])
            runs[staleness].append(read_jsonl(args.folder / name / "metrics.jsonl"))
    for line in table(runs, args.thresholds):
        print(line)
    if args.out:
        found = [{"max_staleness": k, "rounds": rounds} for k, rounds in runs.items()]
        args.out.write_text(
            json.dumps(describe(["torch", "ray"]) | {"overrides": args.overrides, "runs": found}) + "\n"
        )


def run(script: str, name: str, folder: Path, overrides: Sequence[str]) -> None:
    command = [sys.executable, script, "--config", RECIPE, f"name={name}", f"output_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["logging.wandb=disabled", *overrides]
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(f"{name}: exit status {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def table(runs: dict[int, list[Rows]], thresholds: Sequence[float]) -> Iterator[str]:
    """A line for each staleness: means over rounds; seconds since the first step began."""
    reached = " | ".join(f"s to {t:g}" for t in thresholds)
    yield f"| max_staleness | {reached} | s a step | learner waits | samplers wait | tokens by age | last pass@1 |"
    yield "|---" * (len(thresholds) + 6) + "|"
    for staleness, rounds in runs.items():
        seconds = [_mean(_seconds_to(rows, t) for rows in rounds) for t in thresholds]
        step = statistics.mean(row["time/step"] for rows in rounds for row in rows[1:])
        learner, samplers = (_share(rounds, f"time/wait_{who}") for who in ("rollout", "learner"))
        ages = Counter[int]()
        for row in rounds[0][1:]:
            ages[round(row["staleness/max"])] += row["tokens/completion"]
        shares = ", ".join(f"{age}: {n / ages.total():.0%}" for age, n in sorted(ages.items()))
        yield (
            f"| {staleness} | {' | '.join(seconds)} | {step:.2f} | {learner:.0%} | {samplers:.0%} | {shares} "
            f"| {rounds[0][-1]['eval/pass@1']:.3f} |"
        )


def _seconds_to(rows: Rows, threshold: float) -> float | None:
    """From the end of the first evaluation to that of the first one that reached it."""
    found = (row["time/total"] for row in rows if row.get("eval/pass@1", 0.0) >= threshold)
    end = next(found, None)
    return None if end is None else end - rows[0]["time/total"]


def _mean(values: Iterator[float | None]) -> str:
    known = list(values)
    return "not reached" if None in known else f"{statistics.mean(v for v in known if v is not None):.0f}"


def _share(rounds: list[Rows], phase: str) -> float:
    """Of the steps' time."""
    rows = [row for rows in rounds for row in rows[1:]]
    return sum(row[phase] for row in rows if phase in row) / sum(row["time/step"] for row in rows)


if __name__ == "__main__":
    main()
