"""From a layer's projections to the rows of a chunk: norm, gate, cumulative decay. Device functions.

The same functions serve the chunk forward, its backward and the decoder, and give the same numbers in each.
"""

import triton
import triton.language as tl

from deltarl.kernels.gpu.ops import INTERPRETED, rounded, sigmoid, softplus, tree_sum

# What the gate input is: the log decay itself, or the pre-activation of the softplus or of the bounded sigmoid gate.
LOG_DECAY, SOFTPLUS, BOUNDED = 0, 1, 2
_LOG_DECAY: tl.constexpr = tl.constexpr(LOG_DECAY)
_SOFTPLUS: tl.constexpr = tl.constexpr(SOFTPLUS)


@triton.jit
def unit_rows(x, NORM: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, OPERAND: tl.constexpr):
    """Rows `[ROWS, K]` L2-normalised and rounded as operands, but kept in fp32; and 1/norm `[ROWS]`."""
    x = x.to(tl.float32)
    rstd = tl.full([ROWS], 1.0, tl.float32)
    if NORM:
        rstd = tl.rsqrt(tree_sum(x * x, ROWS, K) + 1e-6)
    return rounded(x * rstd[:, None], OPERAND).to(tl.float32), rstd


@triton.jit
def log_decay(g, a_log, dt_bias, lower_bound, head, GATE: tl.constexpr, K: tl.constexpr):
    """Log decay of a head's gate inputs `g` `[ROWS, K]` fp32 (Kimi Linear, arXiv 2510.26692, Eq. 10).

    See `deltarl.kernels.gate.log_decay`; a_log and dt_bias are pointers.
    """
    if GATE == _LOG_DECAY:
        return g
    else:
        rate = tl.exp(tl.load(a_log + head))
        g += tl.load(dt_bias + head * K + tl.arange(0, K))[None, :]
        if GATE == _SOFTPLUS:
            return -rate * softplus(g)
        else:
            return lower_bound * sigmoid(rate * g)


@triton.jit
def log_decay_gradient(dg, g, a_log, dt_bias, lower_bound, head, GATE: tl.constexpr, K: tl.constexpr):
    """Gradient of the gate inputs and, element by element, of `A_log`, from that of the log decay."""
    if GATE == _LOG_DECAY:
        return dg, dg
    else:
        rate = tl.exp(tl.load(a_log + head))
        g += tl.load(dt_bias + head * K + tl.arange(0, K))[None, :]
        if GATE == _SOFTPLUS:
            return -dg * rate * sigmoid(g), -dg * rate * softplus(g)
        else:
            s = sigmoid(rate * g)
            dx = dg * lower_bound * s * (1.0 - s)
            return dx * rate, dx * rate * g


@triton.jit
def cumulative(g, start, C: tl.constexpr):
    """Running sum of `g` `[C, K]` down the rows, begun at `start` `[C, K]` (fp32).

    As a product with a triangle of ones, whose terms are added in order: what a decoder gets that adds one row after
    the other.
    """
    row = tl.arange(0, C)
    if INTERPRETED:  # its products take their terms in any order
        total = start
        for j in range(C):
            total += tl.where(row[:, None] >= j, tl.sum(tl.where(row[:, None] == j, g, 0.0), 0)[None, :], 0.0)
        return total
    ones = tl.where(row[:, None] >= row[None, :], 1.0, 0.0)
    return tl.dot(ones, g, acc=start, input_precision="ieee")
