"""The charts of the report: plotly figures drawn from the rows of metrics.jsonl."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from deltarl.rl.metrics import MetricDoc, metric_doc
from deltarl.rl.report_gantt import DOC, LAST_STEPS, gantt_figure, gantt_height
from deltarl.rl.report_panels import AMBER, BLUE, GREEN, GREY, PANELS, ROSE, TEAL, VIOLET, WARM_START, Line, Panel
from deltarl.rl.trace import TRACE_FILE, Span

Row = Mapping[str, Any]
Column = tuple[list[int], list[float | None]]

_RIGHT_AXIS: dict[str, Any] = {
    "overlaying": "y",
    "side": "right",
    "showgrid": False,
    "zeroline": False,
    "rangemode": "tozero",
    "exponentformat": "e",
    "tickmode": "auto",  # plotly's default for an overlaid axis copies the left one's lines, at crooked values
    "nticks": 5,
    "hoverformat": ".4~g",
}

MAX_POINTS = 800  # of a curve; a longer one is thinned evenly to keep the page small


@dataclass(frozen=True)
class Chart:
    """A drawn panel and what its metrics mean; one with a height of its own, in pixels, is as wide as the page."""

    title: str
    note: str
    docs: Mapping[str, MetricDoc]
    figure: go.Figure
    height: int | None = None


def build_charts(rows: Sequence[Row], sft_rows: Sequence[Row], spans: Sequence[Span] = ()) -> list[Chart]:
    """Draw every panel that has data.

    Args:
        rows: metrics in order of steps, one row a step.
        sft_rows: the same for the supervised warm start; may be empty.
        spans: of the steps that the timeline is to show.
    """
    charts = [_reward_chart(rows), _held_out_chart(rows), *(_panel_chart(panel, rows) for panel in PANELS)]
    # A run that is nothing but supervised training has these metrics in its main file.
    charts += [_panel_chart(WARM_START, sft_rows or rows), _timeline_chart(spans)]
    return [chart for chart in charts if chart is not None]


def column(rows: Sequence[Row], name: str) -> Column:
    """Steps and values of one metric, of the rows that have it; None where it was not finite."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def has_data(values: Sequence[float | None]) -> bool:
    """Whether there is anything to draw."""
    return any(value is not None for value in values)


def _reward_chart(rows: Sequence[Row]) -> Chart | None:
    steps, mean = column(rows, "reward/mean")
    if not has_data(mean):
        return None
    figure, names = _figure("reward"), ["reward/mean"]
    spread = {row["step"]: row.get("reward/std") for row in rows}
    band = [(x, m, s) for x, m in zip(steps, mean, strict=True) if m is not None and (s := spread[x]) is not None]
    if band:
        names.append("reward/std")
        xs = [x for x, _, _ in band]
        edge: dict[str, Any] = {"mode": "lines", "line_width": 0, "hoverinfo": "skip"}
        figure.add_trace(_scatter(xs, [m - s for _, m, s in band], showlegend=False, **edge))
        figure.add_trace(
            _scatter(xs, [m + s for _, m, s in band], name="± std", fill="tonexty", fillcolor=faded(BLUE, 0.13), **edge)
        )
    smooth = len(steps) >= 10
    raw = Line("mean of the step" if smooth else "mean", BLUE)
    figure.add_trace(_line(steps, mean, raw, width=1 if smooth else 2, opacity=0.5 if smooth else 1.0))
    if smooth:
        figure.add_trace(_line(steps, _smoothed(mean), Line("smoothed", BLUE), width=2.6, markers=False))
    # One plug-in is the reward itself, up to its weight; several are worth telling apart.
    plugins = sorted({name for row in rows for name in row if name.startswith("reward/") and name.count("/") == 2})
    for name, color in zip(
        plugins if len(plugins) > 1 else [], cycle((AMBER, TEAL, VIOLET, ROSE, GREEN)), strict=False
    ):
        names.append(name)
        figure.add_trace(_line(*column(rows, name), Line(name.split("/")[1], color, "dot"), width=1.4))
    return _chart("Reward", "Mean over the step's completions.", names, figure)


def _held_out_chart(rows: Sequence[Row]) -> Chart | None:
    """pass@k and maj@k of the main set, pass@1 with its interval; pass@1 of other sets."""
    logged = {name for row in rows for name in row if name.startswith("eval/") and has_data(column(rows, name)[1])}
    own = sorted(
        (name for name in logged if re.fullmatch(r"eval/(pass|maj)@\d+", name)),
        key=lambda name: (name.startswith("eval/maj"), int(name.partition("@")[2])),
    )
    ordered = [*own, *sorted(name for name in logged if re.fullmatch(r"eval/[^/]+/pass@1", name))]
    if not ordered:
        return None
    figure = _figure(percent=True)
    for name, color in zip(ordered, cycle((GREEN, BLUE, VIOLET, AMBER, TEAL, GREY)), strict=False):
        figure.add_trace(_line(*column(rows, name), Line(name.removeprefix("eval/"), color), width=2.4))
    ends = [f"eval/pass@1/{end}" for end in ("low", "high")]
    if logged.issuperset(ends):
        for name in ends:
            figure.add_trace(_line(*column(rows, name), Line(name.removeprefix("eval/"), GREEN, "dot"), width=1))
        ordered += ends
    return _chart("Held-out accuracy", "Problems the policy never trains on.", ordered, figure)


def _timeline_chart(spans: Sequence[Span]) -> Chart | None:
    figure = gantt_figure(spans)
    if figure is None:
        return None
    note = f"The last {LAST_STEPS} steps: gaps are workers with nothing to do. Older ones are in trace.json."
    return Chart("Timeline", note, {TRACE_FILE: DOC}, figure, gantt_height(figure))


def _panel_chart(panel: Panel, rows: Sequence[Row]) -> Chart | None:
    columns = {name: column(rows, name) for name in panel.lines}
    columns = {name: data for name, data in columns.items() if has_data(data[1])}
    if not columns:
        return None
    values = [value for _, ys in columns.values() for value in ys if value is not None]
    log = panel.log and max(values) > 0  # exact parity, all zeros, is a picture too: a flat linear line
    figure = _figure(panel.y_title, percent=panel.percent, log=log)
    if any(panel.lines[name].right for name in columns):
        figure.update_layout(yaxis2=_RIGHT_AXIS | {"title": panel.right_title})
    if panel.stacked:
        # Every area needs a value at every step, else plotly would interpolate, e.g. evaluations between evaluations.
        steps = sorted({step for xs, _ in columns.values() for step in xs})
        for name, (xs, ys) in columns.items():
            known = dict(zip(xs, ys, strict=True))
            figure.add_trace(_area(steps, [known.get(step) or 0.0 for step in steps], panel.lines[name]))
        if panel.percent:
            figure.update_layout(yaxis_range=[0, 1])
    else:
        for name, (xs, ys) in columns.items():
            shown = [y if y is None or y > 0 else None for y in ys] if log else ys
            figure.add_trace(_line(xs, shown, panel.lines[name]))
    if log:  # whole decades, so that at least two of them are labelled
        exponents = [math.log10(value) for value in values if value > 0]
        low = math.floor(min(exponents))
        figure.update_layout(yaxis_range=[low, max(low + 1, math.ceil(max(exponents)))])
    return _chart(panel.title, panel.note, list(columns), figure)


def _chart(title: str, note: str, names: Sequence[str], figure: go.Figure) -> Chart:
    figure.update_layout(showlegend=sum(trace.showlegend is not False for trace in figure.data) > 1)
    if max(trace.x[-1] for trace in figure.data) <= 5:
        figure.update_layout(xaxis_dtick=1)  # no labels between the first steps
    return Chart(title, note, {name: metric_doc(name) for name in names}, figure)


def _figure(y_title: str = "", percent: bool = False, log: bool = False) -> go.Figure:
    # Linear axes start at zero: a curve that rises from 0.41 to 0.43 should look like what it is.
    y_axis: dict[str, Any] = {"title": y_title, "rangemode": "tozero", "hoverformat": ".4~g"}
    y_axis |= {"zeroline": False, "showspikes": False}
    if percent:
        y_axis |= {"tickformat": ".2~%", "hoverformat": ".1%"}
    if log:
        y_axis |= {"type": "log", "rangemode": "normal", "exponentformat": "e", "dtick": 1, "hoverformat": ".3~g"}
    return go.Figure(
        layout={
            "template": "none",
            "hovermode": "x unified",
            "barmode": "stack",
            "margin": {"l": 56, "r": 20, "t": 8, "b": 40},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
            "xaxis": {
                "title": "step",
                "showgrid": False,
                "zeroline": False,
                "rangemode": "tozero",
                "unifiedhovertitle": {"text": "step %{x}"},
            },
            "yaxis": y_axis,
        }
    )


def _line(
    steps: list[int],
    values: Sequence[float | None],
    line: Line,
    *,
    width: float = 2.0,
    opacity: float = 1.0,
    markers: bool = True,
) -> go.Scatter:
    style = {"color": line.color, "width": width, "dash": line.dash}
    return _scatter(
        steps,
        values,
        name=line.label,
        mode="lines+markers" if markers and len(steps) <= 40 else "lines",
        line=style,
        marker_size=9 if len(steps) == 1 else 5,
        opacity=opacity,
        yaxis="y2" if line.right else "y",
    )


def _area(steps: list[int], values: Sequence[float], line: Line) -> go.Bar | go.Scatter:
    if len(steps) == 1:  # an area over one step has no width
        return go.Bar(
            x=steps, width=0.25, y=[_short(v) for v in values], name=line.label, marker_color=faded(line.color, 0.7)
        )
    edge = {"color": line.color, "width": 0}  # an edge would draw a phase of zero seconds too
    fill = faded(line.color, 0.65)
    return _scatter(steps, values, name=line.label, mode="lines", line=edge, fillcolor=fill, stackgroup="all")


def _scatter(steps: list[int], values: Sequence[float | None], **style: Any) -> go.Scatter:
    stride = math.ceil(len(steps) / MAX_POINTS)
    kept = range(len(steps) - 1, -1, -stride)[::-1]  # counted from the end, so that the newest point stays
    return go.Scatter(x=[steps[i] for i in kept], y=[_short(values[i]) for i in kept], **style)


def _smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Exponential moving average over about a fifteenth of the curve, without a pull towards the first value."""
    keep = 1 - 2 / (max(5, len(values) // 15) + 1)
    total, weight, smoothed = 0.0, 0.0, list[float | None]()
    for value in values:
        if value is not None:
            total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight if weight else None)
    return smoothed


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def faded(color: str, alpha: float) -> str:
    """A `#rrggbb` colour, seen through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
