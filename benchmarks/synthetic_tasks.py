"""The synthetic tasks of the Kimi Linear paper (section 5.1, Figure 4), several architectures: train, score, compare.

python benchmarks/synthetic_tasks.py --task palindrome mqar stack --length 256 512 1024 2048 --steps 20000 \\
    --learning-rate 5e-5 1e-4 5e-4 1e-3 --seed 0 1 2 --out runs/synthetic        # the paper's settings: a GPU
python benchmarks/synthetic_tasks.py --length 32 --arm kda --steps 1500 --learning-rate 3e-3 --eval-interval 100 \\
    --out runs/synthetic-tiny hidden_size=64 linear_head_dim=32 intermediate_size=128   # a core, minutes

Trains every arm of the file (architectures: overrides of the recipe's `model` section) on every task, length, learning
rate and seed, `--jobs` of them side by side, and prints the best rate's accuracy. Stopped, the same command goes on: a
finished trial is a JSON file in the folder, one under way a checkpoint beside it.
"""

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from pydantic import ValidationError

from deltarl.rl.config import ModelConfig
from deltarl.rl.synthetic.tasks import TASKS
from deltarl.rl.synthetic.trial import Trial, run_trial

ARMS = Path(__file__).with_name("synthetic_arms.yaml")


def read_arms(file: Path, wanted: list[str] | None, overrides: list[str]) -> dict[str, ModelConfig]:
    """The models by name.

    Raises:
        ValueError: an arm that the file does not have, or what is no model.
    """
    data: dict[str, Any] = yaml.safe_load(file.read_text())
    common = data["model"] | {key: yaml.safe_load(value) for key, _, value in (o.partition("=") for o in overrides)}
    if unknown := sorted(set(wanted or ()) - data["arms"].keys()):
        raise ValueError(f"{file} has no arm {unknown[0]!r}; it has {', '.join(data['arms'])}")
    return {name: ModelConfig(**common | data["arms"][name]) for name in wanted or data["arms"]}


def run(trial: Trial, model: ModelConfig, folder: Path) -> dict[str, Any]:
    """One trial that tells its name with every point."""
    return run_trial(trial, model, folder, lambda point: tell(trial.name, point))


def run_all(trials: Sequence[Trial], arms: dict[str, ModelConfig], folder: Path, num_jobs: int) -> list[dict[str, Any]]:
    """The results in the trials' order. Trials of this size leave most of a GPU idle: several share it."""
    if num_jobs == 1:
        return [run(trial, arms[trial.arm], folder) for trial in trials]
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pool = ProcessPoolExecutor(num_jobs, spawn, torch.set_num_threads, (1,))
    try:
        return [one.result() for one in [pool.submit(run, trial, arms[trial.arm], folder) for trial in trials]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def summary(results: list[dict[str, Any]]) -> pd.DataFrame:
    """For each task, length and arm the peak accuracy over the seeds at the learning rate that is best on average."""
    keys = ["task", "length", "arm"]
    rows = [
        {key: r[key] for key in [*keys, "learning_rate", "seed", "parameters"]}
        | {"accuracy": 100 * max(point["token_accuracy"] for point in r["curve"]), "steps": r["curve"][-1]["step"]}
        for r in results
    ]
    table = pd.DataFrame(rows).groupby([*keys, "learning_rate"], sort=False, as_index=False)
    table = table.agg(
        accuracy=("accuracy", "mean"),
        lowest=("accuracy", "min"),
        highest=("accuracy", "max"),
        seeds=("seed", "count"),
        steps=("steps", "max"),
        parameters=("parameters", "first"),
    )
    return table.loc[table.groupby(keys, sort=False)["accuracy"].idxmax()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--length", nargs="+", type=int, default=[256], help="tokens (default 256)")
    parser.add_argument("--arms-file", type=Path, default=ARMS, help="default: %(default)s")
    parser.add_argument("--arm", nargs="+", help="some of the file's arms (default: all)")
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step (default %(default)s)")
    parser.add_argument("--eval-interval", type=int, default=200, help="steps between scores (default %(default)s)")
    parser.add_argument("--eval-sequences", type=int, default=128, help="held out (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every model, e.g. hidden_size=64")
    args = parser.parse_intermixed_args()
    try:
        arms = read_arms(args.arms_file, args.arm, args.overrides)
        args.out.mkdir(parents=True, exist_ok=True)
        sizes = (args.steps, args.batch_size, args.eval_interval, args.eval_sequences)
        asked = itertools.product(args.task, args.length, args.learning_rate, args.seed, arms)
        trials = [Trial(task, length, arm, seed, rate, *sizes) for task, length, rate, seed, arm in asked]
        results = run_all(trials, arms, args.out, args.jobs)
    except (OSError, ValueError, ValidationError) as error:
        parser.exit(2, f"error: {error}\n")
    table = summary(results)
    table.to_csv(args.out / "summary.csv", index=False)
    print(table.to_string(index=False, float_format="{:.5g}".format))
    return 0


def tell(name: str, point: dict[str, float]) -> None:
    """One line of the curve."""
    print(
        f"{name} step {point['step']}: loss {point['loss']:.3f}, {point['token_accuracy']:.1%} of tokens and "
        f"{point['sequence_accuracy']:.1%} of sequences right",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
