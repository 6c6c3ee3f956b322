"""Makes up runs for the dashboard's benchmark: noisy curves with the names and the number of metrics of a real run."""

import json
import re
from pathlib import Path

import numpy as np

from deltarl.rl.metrics import METRICS as METRIC_DOCS

# A GRPO run's: no evaluations, no critic, no warm start, nothing that a run names itself.
METRICS = [name for name in METRIC_DOCS if not re.search(r"[{]|^(eval|sft|value)/|value|critic|router|/total", name)]
EVAL = ("eval/pass@1", "eval/pass@1/low", "eval/pass@1/high", "eval/len_mean")
EVAL_EVERY = 50
SAMPLES_EVERY = 100


def make_runs(root: Path, runs: int, steps: int) -> int:
    """Writes `runs` run folders under `root`; returns the bytes of their metrics.jsonl."""
    size = 0
    for number in range(runs):
        folder = root / f"run-{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        rate = (1e-4, 3e-4, 1e-3)[number % 3]
        (folder / "config.yaml").write_text(
            f"name: run-{number:03d}\nseed: {number // 3}\nsteps: {steps}\nlearner:\n  learning_rate: {rate}\n"
        )
        progress = 1 - np.exp(-np.arange(1, steps + 1) / (steps * (0.1 + 0.05 * (number % 3))))
        curves = {name: _curve(rng, progress, name) for name in METRICS}
        times = np.cumsum(curves["time/step"])
        tokens = np.cumsum(np.round(1000 * curves["tokens/completion"]))
        with (folder / "metrics.jsonl").open("w") as file:
            for i in range(steps):
                row = {"step": i + 1} | {name: float(curve[i]) for name, curve in curves.items()}
                if (i + 1) % EVAL_EVERY == 0:
                    row |= {name: float(progress[i] * 0.7 + 0.02 * rng.normal()) for name in EVAL}
                file.write(json.dumps(row | {"time/total": float(times[i]), "tokens/total": float(tokens[i])}) + "\n")
        size += (folder / "metrics.jsonl").stat().st_size
        _write_samples(folder, steps, progress, rng)
    return size


def _curve(rng: np.random.Generator, progress: np.ndarray, name: str) -> np.ndarray:
    steps = len(progress)
    if name.startswith("alert/") or name in ("optim/skipped", "worker/restarts", "verdict/error_frac"):
        return np.zeros(steps)
    scale = rng.uniform(0.5, 1.0)
    walk = np.cumsum(rng.normal(size=steps)) / steps**0.5
    trend = 1 - 0.8 * progress if name.startswith(("entropy", "loss", "clip", "mismatch")) else progress
    return np.abs(scale * trend + 0.05 * walk + 0.08 * rng.normal(size=steps))


def _write_samples(folder: Path, steps: int, progress: np.ndarray, rng: np.random.Generator) -> None:
    with (folder / "samples.jsonl").open("w") as file:
        for step in range(SAMPLES_EVERY, steps + 1, SAMPLES_EVERY):
            for i in range(8):
                right = bool(rng.random() < progress[step - 1] * 0.8)
                answer = 7 * i + (0 if right else int(rng.integers(1, 9)))
                row = {"step": step, "split": "eval", "prompt": f"7*{i}=", "gold": str(7 * i), "group": i}
                row |= {"completion": f"7 times {i} is {answer}, so \\boxed{{{answer}}}", "extracted": str(answer)}
                row |= {"score": float(right), "kind": "right" if right else "wrong", "finish_reason": "stop"}
                file.write(json.dumps(row | {"seconds": 0.001, "weight_version": step, "tokens": 12}) + "\n")
