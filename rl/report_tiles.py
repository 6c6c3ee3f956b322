"""The headline numbers at the top of the report."""

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from deltarl.rl.alerts import LOOK_AT
from deltarl.rl.report_charts import Row, column


class Tile(NamedTuple):
    """One headline: what it is, its value (after `before`, if it is a change), a line of context, a tone."""

    label: str
    value: str
    detail: str
    before: str = ""
    tone: str = ""  # "good", "bad" or none


def build_tiles(rows: Sequence[Row]) -> list[Tile]:
    """Headlines for the metrics that were logged; `rows` is in order of steps, one row a step."""
    tiles = (
        _change("Held-out accuracy", rows, _first_pass_metric(rows), _percent, "one evaluation so far"),
        _change("Reward", rows, "reward/mean", lambda value: f"{value:.3f}", "one step so far"),
        _steps(rows),
        _wall_time(rows),
        _tokens(rows),
        _mismatch(rows),
        _restarts(rows),
        *_alerts(rows),
    )
    return [tile for tile in tiles if tile is not None]


def _first_pass_metric(rows: Sequence[Row]) -> str:
    names = {name for row in rows for name in row if re.fullmatch(r"eval/pass@\d+", name)}
    return min(names, key=lambda name: int(name.partition("@")[2]), default="eval/pass@1")


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [value for value in column(rows, name)[1] if value is not None]


def _change(label: str, rows: Sequence[Row], name: str, show: Callable[[float], str], if_one: str) -> Tile | None:
    points = [(step, value) for step, value in zip(*column(rows, name), strict=True) if value is not None]
    if not points:
        return None
    first, last = points[0][1], points[-1][1]
    if len(points) == 1:
        return Tile(label, show(last), if_one)
    best_step, best = max(points, key=lambda point: point[1])
    tone = "good" if last > first else "bad" if last < first else ""
    return Tile(label, show(last), f"best {show(best)} at step {best_step:,}", show(first), tone)


def _steps(rows: Sequence[Row]) -> Tile:
    epochs = _values(rows, "data/epoch")
    return Tile(
        "Steps", f"{rows[-1]['step']:,}", f"{epochs[-1]:.2f} epochs of the data" if epochs else "last step logged"
    )


def _wall_time(rows: Sequence[Row]) -> Tile | None:
    steps, totals = _values(rows, "time/step"), _values(rows, "time/total")
    if not steps and not totals:
        return None
    detail = f"{median(steps):.3g} s a step (median)" if steps else "since the run started"
    return Tile("Wall time", _duration(totals[-1] if totals else sum(steps)), detail)


def _tokens(rows: Sequence[Row]) -> Tile | None:
    totals, steps, speeds = (_values(rows, name) for name in ("tokens/total", "tokens/completion", "tok_s/rollout"))
    if not steps and not totals:
        return None
    detail = f"{median(speeds):,.0f} tokens/s while sampling" if speeds else "completion tokens"
    return Tile("Sampled tokens", _large(totals[-1] if totals else sum(steps)), detail)


def _mismatch(rows: Sequence[Row]) -> Tile | None:
    values = _values(rows, "mismatch/logprob_abs_max")
    if not values:
        return None
    return Tile("Sampler to learner", f"{max(values):.2g}" if max(values) else "0", "largest log-prob difference, nats")


def _restarts(rows: Sequence[Row]) -> Tile | None:
    values = _values(rows, "worker/restarts")
    return Tile("Worker restarts", f"{max(values):,.0f}", "since the run started") if values else None


def _alerts(rows: Sequence[Row]) -> list[Tile]:
    """One tile for each alert there was, with what to look at."""
    tiles = []
    for name, look_at in LOOK_AT.items():
        steps = [row["step"] for row in rows if row.get(f"alert/{name}")]
        if steps:
            tiles.append(Tile(f"Alert: {name}", f"step {steps[0]:,}", f"at {len(steps):,} steps. {look_at}", "", "bad"))
    return tiles


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _large(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
