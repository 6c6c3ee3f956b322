"""What Ray costs: steps under it beside the same classes in one process, and memory over many steps.

    OMP_NUM_THREADS=1 python benchmarks/fleet.py overhead --out benchmarks/results/fleet_overhead.json
    OMP_NUM_THREADS=1 python benchmarks/fleet.py memory --out benchmarks/results/fleet_memory.json

overhead: one run under Ray and one with in_process=true, of the same seed and so with the same curve, take turns step
by step. Each fleet has one worker of one thread, so that neither side does two things at once. memory: a run of tiny
steps under Ray; slopes are of the first and the last quarter of its steps. The Ray is this benchmark's own, and its
workers have the priority of this process, where Ray's default is a niceness of 15: what else the machine does would
slow one side alone. Runs are in a folder that is deleted afterwards.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from machine import describe
from tqdm import tqdm

from deltarl.rl.cli import load_config
from deltarl.rl.faults import Faults
from deltarl.rl.fleets import Fleets
from deltarl.rl.loop import Loop
from deltarl.rl.metrics import read_curve
from deltarl.rl.problem_set import ProblemSet
from deltarl.rl.run_dir import open_run_dir
from deltarl.rl.timeline import of_step
from deltarl.rl.warm_start import load_tokenizer, starting_point

RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
ONE_EACH = ["rollout.num_workers=1", "reward.num_workers=1", "learner.num_ranks=1"]
PLAIN = ["sft=null", "logging.wandb=disabled", "logging.samples_per_step=0", "checkpoint.keep_best=0"]
# About a second, and about a tenth of one, on one core that is free.
SECOND = ["rollout.prompts_per_step=12", "rollout.max_tokens=32", "model.full_attention_every=4"]
TENTH = ["rollout.prompts_per_step=2", "rollout.num_generations=2", "rollout.max_tokens=8", "model.hidden_size=32"]
TENTH += ["model.num_hidden_layers=2", "model.full_attention_every=2", "model.intermediate_size=64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "memory"))
    parser.add_argument("--steps", type=int, help="default: 20 of each side for overhead, 1000 for memory")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="stop after the step in which these, startup included, are over"
    )
    parser.add_argument("--out", type=Path, help="write all steps as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both sides")
    args = parser.parse_intermixed_args()
    steps = args.steps or (20 if args.what == "overhead" else 1000)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=4, **options, _system_config={"worker_niceness": 0})
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        measure = overhead if args.what == "overhead" else memory
        found = measure(Path(folder), steps, until, args.overrides)
    summary = {key: value for key, value in found.items() if key != "steps"}
    print(json.dumps(summary, indent=1))
    if args.out:
        args.out.write_text(json.dumps(describe(["torch", "ray"]) | {"overrides": args.overrides} | found) + "\n")


def overhead(folder: Path, steps: int, until: float, overrides: list[str]) -> dict[str, Any]:
    """Wall and processor seconds of each step on both sides, after one of each that does not count."""
    sides = {
        name: start(folder, name, steps, [*SECOND, *ONE_EACH, f"in_process={name == 'in_process'}", *overrides])
        for name in ("ray", "in_process")
    }
    rows: list[dict[str, float]] = []
    for step in tqdm(range(1, steps + 2)):
        order = list(sides) if step % 2 else list(sides)[::-1]
        row = {}
        for name in order:
            processor, wall = processor_seconds(), time.monotonic()
            take(sides[name], step)
            row |= {f"{name}_wall": time.monotonic() - wall, f"{name}_cpu": processor_seconds() - processor}
        rows.append(row)
        if time.monotonic() > until and len(rows) > 2:  # quartiles need two that count
            break
    for loop in sides.values():
        end(loop)
    ray.shutdown()
    one, other = (read_curve(loop.config.run_dir) for loop in sides.values())
    assert one == other, "the sides did not compute the same"
    kinds = ("wall", "cpu")
    ratios = {kind: [row[f"ray_{kind}"] / row[f"in_process_{kind}"] for row in rows[1:]] for kind in kinds}
    medians = {key: round(statistics.median(row[key] for row in rows[1:]), 4) for key in rows[0]}
    spread = {f"{kind}_ratio_quartiles": [round(x, 3) for x in statistics.quantiles(ratios[kind])] for kind in kinds}
    return {"counted": len(rows) - 1, "medians": medians, **spread, "steps": rows}


def memory(folder: Path, steps: int, until: float, overrides: list[str]) -> dict[str, Any]:
    """MiB after every step: of the driver's resident memory, and of what the object store holds and has spilled."""
    loop = start(folder, "ray", steps, [*TENTH, "in_process=false", *overrides])
    rows: list[dict[str, float]] = []
    for step in tqdm(range(1, steps + 1)):
        take(loop, step)
        rows.append({"driver": psutil.Process().memory_info().rss / 2**20, **object_store()})
        if time.monotonic() > until:
            break
    end(loop)
    ray.shutdown()
    quarter = max(2, len(rows) // 4)
    found: dict[str, Any] = {"counted": len(rows)}
    for what in rows[0]:
        series = [row[what] for row in rows]
        parts = {"first": series[:quarter], "last": series[-quarter:]}
        slopes = {name: round(1000 * float(np.polyfit(range(quarter), part, 1)[0]), 2) for name, part in parts.items()}
        means = {name: round(statistics.fmean(part), 2) for name, part in parts.items()}
        found[what] = {"mib_mean": means, "mib_per_1000_steps": slopes, "mib_max": round(max(series), 2)}
    return found | {"steps": rows}


def start(folder: Path, name: str, steps: int, overrides: list[str]) -> Loop:
    """A run of more steps than are measured, so that none of these evaluates or saves."""
    never = [f"steps={2 * steps + 2}", f"eval.interval={2 * steps + 2}", f"checkpoint.interval={2 * steps + 2}"]
    config = load_config(RECIPE, [f"name={name}", f"output_dir={folder}", *PLAIN, *never, *overrides])
    run_dir = open_run_dir(config)
    tokenizer = load_tokenizer(config.model)
    problems = ProblemSet.load(config, tokenizer)
    model = starting_point(run_dir / "initial", config, tokenizer, [])
    return Loop(config, run_dir, tokenizer, problems, Fleets.start(config, model), Faults(run_dir))


def take(loop: Loop, step: int) -> None:
    with of_step(step):
        loop._step(step, tqdm(disable=True))


def end(loop: Loop) -> None:
    loop.ahead.close()
    loop.metrics.close()
    loop.samples.close()
    loop.fleets.close()


def processor_seconds() -> float:
    """Of this process and all that it started, Ray's own included."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def object_store() -> dict[str, float]:
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    store = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    return {
        "object_store": store.object_store_bytes_used / 2**20,
        "spilled": store.spilled_bytes_total / 2**20,
    }


if __name__ == "__main__":
    main()
