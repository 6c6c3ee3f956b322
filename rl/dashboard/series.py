"""The curves of a page in one binary answer: a JSON header, then float32 numbers."""

import json
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deltarl.rl.dashboard.bins import binned, make_grid
from deltarl.rl.dashboard.columns import AXES
from deltarl.rl.dashboard.runs import Run

MAX_RUNS = 500


class SeriesRequest(BaseModel):
    """Which curves: each metric of each run, over `low`..`high` of the axis or all of it."""

    model_config = ConfigDict(extra="forbid")

    metrics: Annotated[list[str], Field(max_length=200)]
    runs: Annotated[list[str], Field(max_length=MAX_RUNS)]
    axis: Literal["step", "tokens", "time"] = "step"
    bins: int = Field(default=400, ge=2, le=4000)
    low: float | None = None
    high: float | None = None


def series(request: SeriesRequest, runs: Sequence[Run]) -> bytes:
    """The answer to a request.

    Returns:
        Little-endian: uint32 length of the header; the header, JSON {start, width, number, whole, charts: [{metric,
        runs: [index into the request's]}]}, padded with spaces to whole float32s; then for every chart and run of it
        float32 (4, number): mean, least, largest and number of the values in each bin.
    """
    key = AXES[request.axis]
    columns = [run.columns.values for run in runs]
    xs = [values.get(key) for values in columns]
    known = [x[np.isfinite(x)] for x in xs if x is not None]
    ends = [float(f(x)) for x in known if len(x) for f in (np.min, np.max)]
    low = request.low if request.low is not None else min(ends, default=0.0)
    high = request.high if request.high is not None else max(ends, default=0.0)
    grid = make_grid(low, max(low, high), request.bins, whole=request.axis == "step")
    charts, blocks = [], []
    for metric in request.metrics:
        drawn = []
        for index, (values, x) in enumerate(zip(columns, xs, strict=True)):
            if x is not None and metric in values:
                drawn.append(index)
                blocks.append(binned(x, values[metric], grid).tobytes())
        charts.append({"metric": metric, "runs": drawn})
    header = json.dumps(grid._asdict() | {"whole": request.axis == "step", "charts": charts}).encode()
    header += b" " * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + b"".join(blocks)
