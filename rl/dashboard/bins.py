"""Curves of any length as a few hundred bins, every run on one grid: to be drawn and averaged together."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """Bins [start + i * width, start + (i + 1) * width), i < number."""

    start: float
    width: float
    number: int


def make_grid(low: float, high: float, most: int, whole: bool) -> Grid:
    """At most `most` bins that cover low..high; `whole`: of whole steps, one a bin where they fit."""
    if whole:
        low, high = math.floor(low), math.ceil(high)
        width = max(1, math.ceil((high - low + 1) / most))
        return Grid(low, width, int((high - low) // width) + 1)
    span = max(high - low, 1e-9 * max(1.0, abs(high)))
    return Grid(low, span / (most - 1), most)  # one bin more than the span needs: `high` itself lies in the last


def binned(x: Floats, y: Floats, grid: Grid) -> npt.NDArray[np.float32]:
    """Mean, least, largest and number of the values in each bin.

    Args:
        x, y: (rows,), NaN where a row lacks them.

    Returns:
        (4, grid.number); NaN in bins without a value, 0 for their number.
    """
    out = np.full((4, grid.number), np.nan, dtype=np.float32)
    out[3] = 0
    index = np.floor((x - grid.start) / grid.width)
    known = np.isfinite(y) & (index >= 0) & (index < grid.number)
    index, values = index[known].astype(np.int64), y[known]
    if not len(index):
        return out
    if (np.diff(index) < 0).any():
        order = np.argsort(index, kind="stable")
        index, values = index[order], values[order]
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    bins, counts = index[starts], np.diff(starts, append=len(index))
    out[0, bins] = np.add.reduceat(values, starts) / counts
    out[1, bins] = np.minimum.reduceat(values, starts)
    out[2, bins] = np.maximum.reduceat(values, starts)
    out[3, bins] = counts
    return out
