"""A recipe, synchronous and with samplers ahead of the learner: time to an accuracy, waiting, staleness.

    python benchmarks/async_vs_sync.py --out benchmarks/results/async_vs_sync.json
    python benchmarks/async_vs_sync.py --recipe configs/word_problems.yaml --gpus 2 --staleness 0 1 --rounds 1

All runs start from one warm-started model and run under Ray: one after the other on the CPU, and with --gpus as many
side by side, each on a GPU of its own. Rounds go through all of them, so that what else the machine does meets each.
The curves of the rounds are the same, but for those with --in-flight other than none: only times differ. Runs are in
--folder, which is to be empty.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, NamedTuple

from machine import describe

from deltarl.rl.jsonl import read_jsonl

ROOT = Path(__file__).parents[1]
WRITTEN = ("step", "eval/pass@1", "time/", "staleness/")  # how the names begin of what a result keeps of a row
Rows = list[dict[str, Any]]


class Mode(NamedTuple):
    """`rollout.max_staleness` and `rollout.in_flight` of a run."""

    max_staleness: int
    in_flight: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="configs/quickstart.yaml")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="values of rollout.max_staleness")
    parser.add_argument("--in-flight", nargs="+", default=["none"], help="values of rollout.in_flight, if ahead")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, help="runs side by side, each on one of them")
    parser.add_argument("--start", type=Path, help="the checkpoint all start from; left out, the recipe's warm start")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.4, 0.6, 0.8], help="held-out pass@1")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "async_vs_sync")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, e.g. learner.num_ranks=1")
    args = parser.parse_intermixed_args()
    common = ["--config", args.recipe, "logging.wandb=disabled", *args.overrides]
    if args.start is None:
        Run("rl/run_sft.py", args.folder, "start", common, "0" if args.gpus else "").finish()
    start = args.start or args.folder / "start" / "initial"
    modes = [Mode(n, in_flight) for n in args.staleness for in_flight in (args.in_flight if n else ["none"])]
    runs: dict[Mode, list[Rows]] = {mode: [] for mode in modes}
    for number in range(args.rounds):
        for beside in batched(modes, args.gpus or 1):
            names = {mode: f"ahead_{mode.max_staleness}_{mode.in_flight}_{number}" for mode in beside}
            started = []
            for gpu, (mode, name) in enumerate(names.items()):
                shutil.copytree(start, args.folder / name / "initial", symlinks=True)
                options = [*common, *(f"rollout.{key}={value}" for key, value in mode._asdict().items())]
                started.append(Run("rl/run_grpo.py", args.folder, name, options, str(gpu) if args.gpus else ""))
            try:
                for run in started:
                    run.finish()
            finally:
                for run in started:
                    run.end()
            for mode, name in names.items():
                rows = read_jsonl(args.folder / name / "metrics.jsonl")
                runs[mode].append([{k: x for k, x in row.items() if k.startswith(WRITTEN)} for row in rows])
    for line in table(runs, args.thresholds):
        print(line)
    if args.out:
        found = [mode._asdict() | {"rounds": rounds} for mode, rounds in runs.items()]
        said = {
            "recipe": args.recipe,
            "start": str(args.start or ""),
            "gpus": args.gpus,
            "overrides": args.overrides,
            "runs": found,
        }
        args.out.write_text(json.dumps(describe(["torch", "ray"]) | said) + "\n")


def batched(modes: Sequence[Mode], size: int) -> Iterator[Sequence[Mode]]:
    for i in range(0, len(modes), size):
        yield modes[i : i + size]


class Run:
    """One command of the package, under way in a process."""

    def __init__(self, script: str, folder: Path, name: str, options: Sequence[str], gpu: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._said = name, folder / f"{name}.stderr"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu}
        command = [sys.executable, script, *options, f"name={name}", f"output_dir={folder}"]
        with self._said.open("w") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=DEVNULL, stderr=stderr)

    def end(self) -> None:
        self._process.terminate()

    def finish(self) -> None:
        status = self._process.wait()
        print(f"{self._name}: exit status {status}", file=sys.stderr, flush=True)
        if status:
            raise RuntimeError(self._said.read_text()[-2000:])


def table(runs: dict[Mode, list[Rows]], thresholds: Sequence[float]) -> Iterator[str]:
    """A line for each mode: means over rounds; seconds since the first step began."""
    reached = " | ".join(f"s to {t:g}" for t in thresholds)
    yield (
        f"| max_staleness | in_flight | {reached} | s a step | learner waits | samplers wait | tokens by their age in "
        "versions | answers of several versions | last pass@1 |"
    )
    yield "|---" * (len(thresholds) + 8) + "|"
    for mode, rounds in runs.items():
        seconds = [_mean(_seconds_to(rows, t) for rows in rounds) for t in thresholds]
        step = statistics.mean(row["time/step"] for rows in rounds for row in rows[1:])
        learner, samplers = (_share(rounds, f"time/wait_{who}") for who in ("rollout", "learner"))
        rows = [row for rows in rounds for row in rows[1:]]
        oldest = int(max(row["staleness/max"] for row in rows))
        ages = (statistics.mean(row.get(f"staleness/frac/{k}", 0.0) for row in rows) for k in range(oldest + 1))
        histogram = ", ".join(f"{k}: {share:.0%}" for k, share in enumerate(ages))
        mixed = statistics.mean(row["staleness/mixed_frac"] for row in rows)
        score = statistics.mean(rows[-1]["eval/pass@1"] for rows in rounds)
        yield (
            f"| {mode.max_staleness} | {mode.in_flight} | {' | '.join(seconds)} | {step:.2f} | {learner:.0%} "
            f"| {samplers:.0%} | {histogram} | {mixed:.0%} | {score:.3f} |"
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
