"""The report's timeline: who did what in the last steps, drawn from trace.json."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from deltarl.rl.metrics import MetricDoc
from deltarl.rl.report_panels import AMBER, BLUE, GREEN, GREY, ROSE, TEAL, VIOLET
from deltarl.rl.trace import Span

LAST_STEPS = 3
MAX_SPANS = 2_000  # the newest of these steps, to keep the page small
MAX_WORKERS = 40  # rows

FLEETS = ("driver", "learner", "rollout", "reward")
"""From top to bottom; further ones below."""
WAITING = "rgba(139,150,168,0.25)"
KINDS = {
    "sampling": BLUE,
    "scoring": VIOLET,
    "learning": AMBER,
    "weights": TEAL,
    "evaluation": GREEN,
    "checkpoint": GREY,
    "starting": ROSE,
    "waiting": WAITING,
    "other": "#b9a28a",
}
"""What the legend tells apart, and its colours."""
KIND_OF = {
    "generate": "sampling",
    "rollout": "sampling",
    "score": "scoring",
    "verify": "scoring",
    "update": "learning",
    "weights": "weights",
    "load_weights": "weights",
    "receive_weights": "weights",
    "weight_sync": "weights",
    "eval": "evaluation",
    "save": "checkpoint",
    "saved": "checkpoint",
    "checkpoint": "checkpoint",
    "start": "starting",
    "wait_rollout": "waiting",
}
"""By a span's phase. What is not here is `other`."""
DOC = MetricDoc("Each call of each worker and each phase of the driver, as the driver saw them", "seconds", "")


def gantt_figure(spans: Sequence[Span]) -> go.Figure | None:
    """A row for each worker, a bar for each span, over the seconds since the first; None without any.

    Args:
        spans: of the steps to show.
    """
    steps = [span for span in spans if span.phase == "step"]
    shown = [span for span in spans if span.phase != "step"][-MAX_SPANS:]
    if not shown:
        return None
    workers = sorted({span.worker for span in shown}, key=_place)[:MAX_WORKERS]
    begin = min(span.start for span in [*steps, *shown])
    by_kind = defaultdict[str, list[Span]](list)
    for span in shown:
        if span.worker in workers:
            by_kind[KIND_OF.get(span.phase, "other")].append(span)
    figure = go.Figure(layout=_layout(workers))
    for kind in (kind for kind in KINDS if kind in by_kind):
        figure.add_trace(_bars(kind, by_kind[kind], begin))
    for step in steps:
        x = _short(step.start - begin)
        figure.add_vline(x=x, line_width=1, line_dash="dot", line_color=GREY)
        text = {"text": f"step {step.step}", "x": x, "xanchor": "left", "font_size": 11}
        figure.add_annotation(**text, y=1, yref="paper", yanchor="bottom", showarrow=False)
    return figure


def gantt_height(figure: go.Figure) -> int:
    """Pixels that its rows need."""
    return 140 + 24 * len(figure.layout.yaxis.categoryarray)


def _bars(kind: str, spans: Sequence[Span], begin: float) -> go.Bar:
    return go.Bar(
        name=kind,
        orientation="h",
        y=[span.worker for span in spans],
        base=[_short(span.start - begin) for span in spans],
        x=[_short(span.end - span.start) for span in spans],
        customdata=[[span.phase, span.step] for span in spans],
        hovertemplate="%{y}: %{customdata[0]}<br>step %{customdata[1]}, %{x:.4~g} s<extra></extra>",
        marker={"color": KINDS[kind], "line_width": 0},
    )


def _layout(workers: Sequence[str]) -> dict[str, Any]:
    x_axis = {"title": "seconds", "showgrid": True, "zeroline": False, "rangemode": "tozero"}
    y_axis = {"categoryorder": "array", "categoryarray": list(workers), "autorange": "reversed", "showgrid": False}
    return {
        "template": "none",
        "hovermode": "closest",
        "barmode": "overlay",
        "bargap": 0.25,
        "showlegend": True,
        "margin": {"l": 80, "r": 20, "t": 26, "b": 40},
        "legend": {"orientation": "h", "x": 0, "y": -0.02, "yref": "container", "yanchor": "bottom"},
        "xaxis": x_axis,
        "yaxis": y_axis | {"dtick": 1},
    }


def _place(worker: str) -> tuple[int, str, int]:
    fleet, _, index = worker.rpartition("-")
    return FLEETS.index(fleet) if fleet in FLEETS else len(FLEETS), fleet, int(index)


def _short(seconds: float) -> float:
    return round(seconds, 5)
