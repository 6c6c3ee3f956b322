"""Every objective on the quickstart's problem: held-out accuracy at equal samples, over several seeds.

    python benchmarks/objectives.py --parallel 2 --out benchmarks/results/objectives.json

All objectives of a seed start from the same warm-started model, on the same problems. Runs are in --folder and are not
run again, so that the benchmark goes on where it was stopped. Each takes one core (in_process).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from machine import describe

from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.presets import Algorithm

ROOT = Path(__file__).parents[1]
RECIPES = {"ppo": "configs/quickstart_ppo.yaml"}
OPTIONS = ("in_process=true", "learner.num_ranks=1", "logging.wandb=disabled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=[*get_args(Algorithm)], choices=get_args(Algorithm))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at a time (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "objectives")
    parser.add_argument("--out", type=Path, help="write all curves as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, e.g. steps=40")
    args = parser.parse_intermixed_args()
    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(lambda seed: warm_start(args.folder, seed, args.overrides), range(args.seeds)))
        work = [(algorithm, seed) for algorithm in args.algorithms for seed in range(args.seeds)]
        rows = list(pool.map(lambda w: train(args.folder, *w, args.overrides), work))
    curves = dict(zip(work, rows, strict=True))
    for line in table(curves, args.algorithms, args.seeds):
        print(line)
    if args.out:
        found = [{"algorithm": a, "seed": s, "curve": curve} for (a, s), curve in curves.items()]
        args.out.write_text(
            json.dumps(describe(["torch"]) | {"overrides": args.overrides, "runs": found}, indent=1) + "\n"
        )


def warm_start(folder: Path, seed: int, overrides: list[str]) -> None:
    """The model that all runs of a seed start from."""
    if not (folder / f"start_{seed}" / "initial").is_dir():
        run("rl/run_sft.py", "configs/quickstart.yaml", f"start_{seed}", folder, seed, overrides)


def train(folder: Path, algorithm: str, seed: int, overrides: list[str]) -> list[dict[str, float]]:
    """The curve of one run: step and metrics, where it was evaluated."""
    name = f"{algorithm}_{seed}"
    if not (folder / name / "initial").is_dir():
        shutil.copytree(folder / f"start_{seed}" / "initial", folder / name / "initial", symlinks=True)
    recipe = RECIPES.get(algorithm, "configs/quickstart.yaml")
    run("rl/run_grpo.py", recipe, name, folder, seed, [f"algorithm={algorithm}", *overrides])
    keep = ("step", "eval/pass@1", "len/mean", "tokens/total", "entropy", "kl/old", "value/explained_variance")
    rows = read_jsonl(folder / name / "metrics.jsonl")
    return [{key: row[key] for key in keep if key in row} for row in rows]


def run(script: str, recipe: str, name: str, folder: Path, seed: int, overrides: list[str]) -> None:
    command = [sys.executable, script, "--config", recipe, f"name={name}", f"output_dir={folder}", f"seed={seed}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *OPTIONS, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(f"{name}: exit status {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def table(curves: dict[tuple[str, int], list[dict[str, float]]], algorithms: list[str], seeds: int) -> Iterator[str]:
    """A line for each objective: accuracy at the evaluations, the mean and the extremes over seeds."""
    evaluated = [[row for row in curve if "eval/pass@1" in row] for curve in curves.values()]
    steps = [int(row["step"]) for row in evaluated[0]]
    yield f"| objective | {' | '.join(f'step {s}' for s in steps)} | sampled tokens |"
    yield "|---" * (len(steps) + 2) + "|"
    for algorithm in algorithms:
        of_seeds = [curves[algorithm, seed] for seed in range(seeds)]
        cells = [_cell([_at(curve, step)["eval/pass@1"] for curve in of_seeds]) for step in steps]
        tokens = statistics.mean(curve[-1]["tokens/total"] for curve in of_seeds)
        yield f"| {algorithm} | {' | '.join(cells)} | {tokens:,.0f} |"


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _at(curve: list[dict[str, float]], step: int) -> dict[str, Any]:
    return next(row for row in curve if row["step"] == step)


if __name__ == "__main__":
    main()
