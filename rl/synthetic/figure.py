"""Accuracy against length and against step, as Figure 4 of the Kimi Linear paper shows them.

    python rl/synthetic/figure.py benchmarks/results/synthetic_h200.json --steps-at 256 1024 --out docs/synthetic.png

Of several learning rates it shows the best of each arm, and of several seeds the mean, in curves beside each.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from deltarl.rl.study.figures import STYLE, colors


def draw(points: pd.DataFrame, lengths: Sequence[int], file: Path) -> None:
    """Writes the figure: a column for each task, a row of peaks by length, and one of curves for each of `lengths`.

    Args:
        points: one a row, with the columns task, length, arm, learning_rate, seed, step and token_accuracy.
    """
    tasks, arms = points["task"].unique(), points["arm"].unique()
    color = dict(zip(arms, colors(len(arms)), strict=True))
    size = (2.6 * len(tasks), 2.2 * (1 + len(lengths)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1 + len(lengths), len(tasks), figsize=size, layout="constrained", sharey=True, squeeze=False
        )
        for column, task in zip(axes.T, tasks, strict=True):
            of_task = points[points["task"] == task]
            column[0].set_title(task)
            for arm, found in best(of_task).groupby("arm", sort=False):
                peaks = found.groupby(["length", "seed"])["token_accuracy"].max().groupby("length").mean()
                column[0].plot(peaks.index, 100 * peaks, "o-", color=color[arm], label=arm, markersize=3)
            column[0].set_xscale("log", base=2)
            column[0].set_xticks(points["length"].unique(), points["length"].unique())
            column[0].set_xlabel("tokens of a sequence")
            for place, length in zip(column[1:], lengths, strict=True):
                _curves(place, best(of_task[of_task["length"] == length]), color)
                place.set_xlabel(f"step, {length} tokens")
        for row in axes:
            row[0].set_ylabel("held-out tokens right (%)")
        lines = {line.get_label(): line for place in axes[0] for line in place.get_lines()}  # no task need have all
        figure.legend(handles=[lines[arm] for arm in arms], loc="outside upper center", ncols=len(arms))
        figure.savefig(file, dpi=150)
        plt.close(figure)


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The points of the learning rate that has the highest peak, as a mean over seeds, for each arm and length."""
    keys = ["length", "arm", "learning_rate"]
    peaks = points.groupby([*keys, "seed"], sort=False)["token_accuracy"].max().groupby(keys, sort=False).mean()
    chosen = peaks.groupby(["length", "arm"], sort=False).idxmax()
    return points[pd.MultiIndex.from_frame(points[keys]).isin(chosen)]


def _curves(place: Axes, points: pd.DataFrame, color: dict[str, str]) -> None:
    for arm, found in points.groupby("arm", sort=False):
        mean = found.groupby("step")["token_accuracy"].mean()
        place.plot(mean.index, 100 * mean, color=color[arm])
        if found["seed"].nunique() > 1:
            for _, one in found.groupby("seed"):
                place.plot(one["step"], 100 * one["token_accuracy"], color=color[arm], linewidth=0.6, alpha=0.5)


def read_points(files: Sequence[Path]) -> pd.DataFrame:
    """Of trials' own files, and of lists of trials under `trials`."""
    found = [json.loads(file.read_text()) for file in files]
    trials = [trial for one in found for trial in one.get("trials", [one])]
    keys = ("task", "length", "arm", "learning_rate", "seed")
    return pd.DataFrame([{key: t[key] for key in keys} | point for t in trials for point in t["curve"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="results of benchmarks/synthetic_tasks.py")
    parser.add_argument("--steps-at", type=int, nargs="*", default=[], help="lengths to show curves of")
    parser.add_argument("--out", type=Path, required=True, help="a .png, .svg or .pdf")
    args = parser.parse_args()
    draw(read_points(args.files), args.steps_at, args.out)


if __name__ == "__main__":
    main()
