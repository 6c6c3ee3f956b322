"""The curves of a study: metrics of every run against step, sampled tokens, arithmetic and time, with bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from deltarl.model.config import hybrid_config
from deltarl.rl.config import RunConfig
from deltarl.rl.flops import forward_flops
from deltarl.rl.metrics import METRICS_FILE
from deltarl.rl.plan_sizes import learner_passes
from deltarl.rl.report import rows_by_step
from deltarl.rl.study.runs import StudyRun
from deltarl.rl.warm_start import load_tokenizer

AXES = {
    "step": "step",
    "tokens": "sampled tokens",
    "flops": "learner FLOP",
    "seconds": "seconds of the run",
}
POINTS = 60  # of the common grid


@dataclass(frozen=True)
class RunCurves:
    """One run: for each axis its values by step, and each metric's steps and values.

    Attributes:
        x: `[S]` for each axis, by step from 0.
        metrics: (steps, values) of each metric, of the steps that have it.
    """

    arm: str
    seed: int
    x: dict[str, np.ndarray]
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]

    def against(self, axis: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The metric's points along an axis."""
        steps, values = self.metrics[metric]
        return self.x[axis][steps], values


@dataclass(frozen=True)
class Band:
    """The mean of an arm's seeds on a grid, and its 95 % interval: Student's over seeds; none of a single seed."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_curves(run: StudyRun) -> RunCurves:
    """The metrics of a finished run."""
    rows = rows_by_step(run.config.run_dir / METRICS_FILE)
    x = {
        "step": np.array([row["step"] for row in rows], dtype=float),
        "tokens": np.cumsum([row.get("tokens/completion", 0.0) for row in rows]),
        "flops": np.cumsum(_learner_flops(run.config, rows)),
        "seconds": np.array([row["time/total"] for row in rows]),
    }
    names = {name for row in rows for name, value in row.items() if isinstance(value, int | float)} - {"step"}
    metrics = {}
    for name in names:
        found = [(i, row[name]) for i, row in enumerate(rows) if row.get(name) is not None]
        metrics[name] = (np.array([i for i, _ in found]), np.array([value for _, value in found], dtype=float))
    return RunCurves(run.arm.name, run.seed, x, metrics)


def _learner_flops(config: RunConfig, rows: Sequence[dict[str, float]]) -> list[float]:
    """Of each step's update: a forward and a backward pass over every token learned from, and the further passes of a
    reference model, a correction and a critic where there are any."""
    sizes = hybrid_config(vocab_size=len(load_tokenizer(config.model)), **config.model.sizes)
    fixed, by_length = forward_flops(sizes, 0.0), forward_flops(sizes, 1.0) - forward_flops(sizes, 0.0)
    answers = config.rollout.prompts_per_step * config.rollout.num_generations
    passes = learner_passes(config) + (config.learner.correction != "none")
    found = []
    for row in rows:
        tokens = row.get("tok_s/train", 0.0) * row.get("time/update", 0.0)
        found.append(passes * tokens * (fixed + by_length * tokens / answers))
    return found


def band(curves: Sequence[RunCurves], axis: str, metric: str) -> Band | None:
    """The mean curve of these seeds along an axis, up to where the shortest of them ends; None where none has the
    metric."""
    found = [curve.against(axis, metric) for curve in curves if metric in curve.metrics]
    if not found:
        return None
    low, high = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    same = all(np.array_equal(x, found[0][0]) for x, _ in found)
    grid = found[0][0] if same else np.linspace(low, high, POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in found])
    mean, half = values.mean(0), np.zeros(len(grid))
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return Band(grid, mean, mean - half, mean + half)


def write_points(curves: Sequence[RunCurves], file: Path) -> None:
    """Every point of every run as CSV: arm, seed, step, the axes, metric, value."""
    lines = ["arm,seed,step,tokens,flops,seconds,metric,value"]
    for curve in curves:
        for metric in sorted(curve.metrics):
            steps, values = curve.metrics[metric]
            for i, value in zip(steps, values, strict=True):
                x = ",".join(f"{curve.x[axis][i]:.10g}" for axis in AXES)
                lines.append(f"{curve.arm},{curve.seed},{x},{metric},{value:.10g}")
    file.write_text("\n".join(lines) + "\n")
