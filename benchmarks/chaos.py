"""Random faults over one run: what each costs, and that the curve does not tell.

    python benchmarks/chaos.py --faults 100 --seed 0 --out benchmarks/results/chaos.json

A tiny run on three raylets of this machine: one learner, four samplers, two verifiers. While it goes on, workers are
killed (`kill -9`) or stopped (SIGSTOP), a raylet is killed and another joins, the disk for checkpoints fills up (a
small tmpfs), a verifier hangs, the network to one raylet (in a namespace of its own) is cut for ten seconds; disk and
network need root. One fault at a time; a fault is over when the run has done a step that began after it. At the end the
curve, the sampled answers and the tokens counted are compared with those of the same run in one process that nothing
happened to, bit for bit.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from chaos_faults import Machine
from machine import describe

from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import read_curve

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "tests" / "rl" / "tiny.yaml"
PLUGIN = """
import time
from pathlib import Path

FLAG = Path({flag!r})


def hangs(completions, **columns):
    if FLAG.exists():
        FLAG.unlink()
        time.sleep(3600)
    return [len(c) / 100 for c in completions]
"""
Rows = list[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_") as name:
        result = chaos(args.faults, args.seed, Path(name))
    print("\n".join(table(result)))
    if args.out:
        args.out.write_text(json.dumps({"machine": describe(["ray", "torch"]), **result}, indent=1) + "\n")
    return 0 if all(result["checks"].values()) else 1


def chaos(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs undisturbed and disturbed in `folder`, and compares."""
    flag = folder / "hang"
    (folder / "plugin.py").write_text(PLUGIN.format(flag=str(flag)))
    command = [sys.executable, "-m", "deltarl.rl.run_grpo", "--config", str(RECIPE), *options(folder, 4 * count + 10)]
    subprocess.run([*command, "name=straight", "in_process=true"], check=True, stderr=subprocess.DEVNULL)
    with Machine(folder / "broken", flag) as machine:
        env = os.environ | {"RAY_ADDRESS": machine.address}
        driver = subprocess.Popen([*command, "name=broken"], env=env, stderr=subprocess.DEVNULL)
        try:
            recoveries = inject(machine, driver, folder / "broken", random.Random(seed), count)
            status = driver.wait()
        finally:
            driver.kill()
        left = [str(file) for file in machine.litter()]
    time.sleep(5)  # what lost its raylet takes a moment to see it
    left += [" ".join(process.cmdline()) for process in machine.processes()]
    straight, broken = (read_jsonl(folder / name / "metrics.jsonl") for name in ("straight", "broken"))
    curves = [read_curve(folder / name) for name in ("straight", "broken")]
    checks = {
        "the run ended well": status == 0,
        "each step once": [row["step"] for row in broken] == list(range(len(straight))),
        "the curve is the undisturbed one, bit for bit": curves[0] == curves[1],
        "so are the answers": answers(folder / "broken") == answers(folder / "straight"),
        "no process or file left": not left,
    }
    last = {name: value for name, value in broken[-1].items() if name.startswith("worker/")}
    undisturbed = statistics.median(row["time/step"] for row in broken[1:])
    measured = {"seed": seed, "recoveries": recoveries, "step_s": undisturbed, "workers": last}
    return measured | {"left": left, "checks": checks}


def options(folder: Path, steps: int) -> list[str]:
    functions = [{"name": "math"}, {"name": "hangs", "function": f"{folder / 'plugin.py'}:hangs"}]
    return [
        *(f"output_dir={folder}", f"steps={steps}", "heartbeat=4", "checkpoint.interval=1", "eval.interval=1000"),
        *("rollout.num_workers=4", "rollout.num_cpus=0.4", "reward.num_workers=2", "reward.stuck_after=15"),
        *("learner.num_cpus=0.4", "learner.max_restarts=10", f"reward.functions={json.dumps(functions)}"),
    ]


def inject(
    machine: Machine, driver: subprocess.Popen[bytes], run_dir: Path, rng: random.Random, count: int
) -> dict[str, list[float]]:
    """Seconds until the run had done a step that began after the fault, by fault."""
    found: dict[str, list[float]] = defaultdict(list)
    wait_for(lambda: steps_done(run_dir) >= 2, driver)
    for number in range(count):
        time.sleep(rng.uniform(0.0, 1.0))
        name, fault = machine.choose(rng)
        before, start = steps_done(run_dir), time.monotonic()
        fault()
        wait_for(lambda before=before: steps_done(run_dir) > before + 1, driver)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        found[name].append(round(time.monotonic() - start, 2))
        machine.mend()
        print(f"{number + 1}/{count}: {name}, {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return dict(found)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """
    Raises:
        RuntimeError: the run ended first, or it takes longer than ten minutes.
    """
    deadline = time.monotonic() + 600
    while not condition():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended with {driver.poll()} or stands still")
        time.sleep(0.05)


def steps_done(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return read_jsonl(file)[-1]["step"] if file.exists() and file.stat().st_size else -1


def answers(run_dir: Path) -> Rows:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in read_jsonl(run_dir / "samples.jsonl")]


def table(result: dict[str, Any]) -> list[str]:
    lines = ["| fault | times | recovery s, median | longest |", "|---|---|---|---|"]
    for name, seconds in sorted(result["recoveries"].items()):
        lines.append(f"| {name} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    lines += ["", f"A step takes {result['step_s']:.2f} s (median). {result['workers']}"]
    return lines + [f"{'yes' if good else 'NO'}: {check}" for check, good in result["checks"].items()]


if __name__ == "__main__":
    assert psutil.LINUX, "faults are signals, mounts and /proc: Linux alone"
    sys.exit(main())
