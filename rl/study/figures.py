"""Figures for a paper: PNG and SVG, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deltarl.rl.report_panels import AMBER, BLUE, GREEN, GREY, ROSE, TEAL, VIOLET
from deltarl.rl.study.curves import AXES, RunCurves, band

COLORS = (BLUE, ROSE, TEAL, AMBER, VIOLET, GREEN, GREY)
STYLE: Any = {  # the keys have a type of their own
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def draw_figures(
    folder: Path, curves: Mapping[str, Sequence[RunCurves]], decode: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[Path]:
    """Writes accuracy.*, dynamics.* and decode.* as PNG and SVG.

    Args:
        curves: of each arm, one a seed.
        decode: of each arm what `worker.decode_speed` found.
    """
    with plt.rc_context(STYLE):
        figures = {"accuracy": _accuracy(curves), "dynamics": _dynamics(curves), "decode": _decode(decode)}
    written = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            written.append(folder / f"{name}.{kind}")
            figure.savefig(written[-1], dpi=200)
        plt.close(figure)
    return written


def _accuracy(curves: Mapping[str, Sequence[RunCurves]]) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2), layout="constrained", sharey=True)
    for place, axis in zip(axes.flat, AXES, strict=True):
        _draw(place, curves, axis, "eval/pass@1")
        place.set_xlabel(AXES[axis])
        place.xaxis.set_major_locator(MaxNLocator(5))  # of more, long numbers run into each other
    for place in axes[:, 0]:
        place.set_ylabel("held-out accuracy")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(max(0.0, low), min(1.0, high))  # bands by Student's t may go beyond
    _legend(figure, axes[0, 0])
    return figure


def _dynamics(curves: Mapping[str, Sequence[RunCurves]]) -> Figure:
    metrics = {
        "reward/mean": "training reward",
        "len/mean": "tokens of an answer",
        "entropy": "entropy (nats)",
        "kl/old": "KL of an update (nats)",
    }
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2), layout="constrained")
    for place, (metric, label) in zip(axes.flat, metrics.items(), strict=True):
        _draw(place, curves, "step", metric)
        place.set_xlabel("step")
        place.set_ylabel(label)
    _legend(figure, axes[0, 0])
    return figure


def _legend(figure: Figure, place: Axes) -> None:
    """Above all axes, where it hides no curve."""
    handles, names = place.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)))


def _draw(place: Axes, curves: Mapping[str, Sequence[RunCurves]], axis: str, metric: str) -> None:
    """The mean of each arm with its band, and its seeds as thin lines."""
    for (arm, found), color in zip(curves.items(), colors(len(curves)), strict=True):
        if (mean := band(found, axis, metric)) is None:
            continue
        for curve in found:
            if metric in curve.metrics:
                place.plot(*curve.against(axis, metric), color=color, linewidth=0.5, alpha=0.35)
        place.fill_between(mean.x, mean.low, mean.high, color=color, alpha=0.18, linewidth=0)
        place.plot(mean.x, mean.mean, color=color, linewidth=1.8, label=arm)


def _decode(decode: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    figure, (size, speed) = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained")
    for (arm, found), color in zip(decode.items(), colors(len(decode)), strict=True):
        contexts = [row["context"] for row in found]
        size.loglog(contexts, [row["bytes"] / 1024 for row in found], "o-", color=color, label=arm, markersize=3)
        speed.loglog(contexts, [row["tokens_per_s"] for row in found], "o-", color=color, markersize=3)
    for place, label in ((size, "KiB of a sequence"), (speed, "tokens per second")):
        place.set_xlabel("context (tokens)")
        place.set_ylabel(label)
    size.legend()
    return figure


def colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
