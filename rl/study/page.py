"""The study's page: verdict, tables and interactive curves in one HTML file that needs no network."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deltarl.rl.report_charts import faded
from deltarl.rl.study.compare import ArmResult, Difference
from deltarl.rl.study.curves import AXES, RunCurves, band
from deltarl.rl.study.figures import COLORS

_PASS = re.compile(r"eval/pass@\d+")
PANELS = {
    "reward/mean": "Training reward",
    "len/mean": "Tokens of an answer",
    "entropy": "Entropy (nats)",
    "kl/ref": "KL to the reference model (nats)",
    "kl/old": "KL of an update (nats, k3)",
    "mismatch/k3": "Sampler to learner (nats, k3)",
    "optim/grad_norm": "Gradient norm",
}


def write_page(
    file: Path,
    *,
    name: str,
    results: Sequence[ArmResult],
    differences: Sequence[Difference],
    curves: Mapping[str, Sequence[RunCurves]],
    decode: Mapping[str, Sequence[Mapping[str, float]]],
    arms: Sequence[Mapping[str, Any]],
    sweep: Mapping[str, Any] | None,
) -> None:
    """Writes `file`.

    Args:
        arms: rows of the table of arms: name, keys, parameters, chosen.
        sweep: what the sweep's file holds.
    """
    passes = sorted(
        {name for found in curves.values() for curve in found for name in curve.metrics if _PASS.fullmatch(name)},
        key=lambda name: int(name.partition("@")[2]),
    )
    panels = {name: f"Held-out {name.removeprefix('eval/')}" for name in passes} | PANELS
    charts = [(title, _chart(curves, metric)) for metric, title in panels.items()]
    shown = [(title, figure) for title, figure in charts if figure is not None]
    environment = Environment(
        loader=PackageLoader("deltarl.rl.study", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("study.html.j2").render(
        name=name,
        results=results,
        differences=differences,
        arms=arms,
        sweep=sweep,
        decode=decode,
        titles=[title for title, _ in shown],
        axes=AXES,
        figures=Markup(htmlsafe_json_dumps([figure for _, figure in shown])),
        plotly_js=Markup(get_plotlyjs()),
        nonce=secrets.token_urlsafe(16),
    )
    temporary = file.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)


def _chart(curves: Mapping[str, Sequence[RunCurves]], metric: str) -> dict[str, Any] | None:
    """The traces of each axis, for the page to choose from; None where no run has the metric."""
    by_axis = {}
    for axis in AXES:
        traces: list[go.Scatter] = []
        for i, (arm, found) in enumerate(curves.items()):
            color = COLORS[i % len(COLORS)]
            if (mean := band(found, axis, metric)) is None:
                continue
            edge: dict[str, Any] = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
            traces.append(go.Scatter(x=_short(mean.x), y=_short(mean.low), legendgroup=arm, **edge))
            fill = {"fill": "tonexty", "fillcolor": faded(color, 0.16)}
            traces.append(go.Scatter(x=_short(mean.x), y=_short(mean.high), legendgroup=arm, **fill, **edge))
            line = {"color": color, "width": 2.2}
            traces.append(go.Scatter(x=_short(mean.x), y=_short(mean.mean), name=arm, legendgroup=arm, line=line))
            for curve in found:
                if metric in curve.metrics:
                    x, y = curve.against(axis, metric)
                    thin: dict[str, Any] = {"mode": "lines", "showlegend": False, "opacity": 0.35}
                    label = f"{arm} seed {curve.seed}"
                    thin |= {"line": {"color": color, "width": 0.8}, "name": label, "legendgroup": arm}
                    traces.append(go.Scatter(x=_short(x), y=_short(y), **thin))
        by_axis[axis] = [json.loads(trace.to_json()) for trace in traces]
    return by_axis if by_axis["step"] else None


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
