"""From a layer's projections to the rows of a chunk: norm, gate, cumulative decay, triangular inverse.

The same functions serve the chunk forward, its backward and the decoder, and give the same numbers in each. Tiles of
tokens are held as columns, `[K, C]`: a product then has the channels as its rows, many enough to spread over the warps
of a program, where the 16 tokens of a chunk would make each warp compute, and hold, the same.
"""

import triton
import triton.language as tl

from deltarl.kernels.gpu.gate import LOG_DECAY, SOFTPLUS
from deltarl.kernels.gpu.ops import column_squares, exponential, operand, product, sigmoid, softplus, spread, summed

_LOG_DECAY: tl.constexpr = tl.constexpr(LOG_DECAY)
_SOFTPLUS: tl.constexpr = tl.constexpr(SOFTPLUS)


@triton.jit
def unit_columns(x, NORM: tl.constexpr, C: tl.constexpr, OPERAND: tl.constexpr):
    """Columns of `[K, C]` L2-normalised and rounded as operands, but kept in fp32; and 1/norm `[C]`."""
    rstd = tl.full([C], 1.0, tl.float32)
    if NORM:
        rstd = tl.rsqrt(column_squares(x, C) + 1e-6)
    return operand(spread(x, 1.0, C) * rstd[None, :], OPERAND).to(tl.float32), rstd


@triton.jit
def log_decay(g, a_log, dt_bias, lower_bound, head, GATE: tl.constexpr, K: tl.constexpr):
    """Log decay of a head's gate inputs `g` `[K, n]` fp32 (Kimi Linear, arXiv 2510.26692, Eq. 10).

    See `deltarl.kernels.gate.log_decay`; a_log and dt_bias are pointers.
    """
    if GATE == _LOG_DECAY:
        return g
    else:
        rate = exponential(tl.load(a_log + head))
        g += tl.load(dt_bias + head * K + tl.arange(0, K))[:, None]
        if GATE == _SOFTPLUS:
            return -rate * softplus(g)
        else:
            return lower_bound * sigmoid(rate * g)


@triton.jit
def log_decay_gradient(dg, g, rate, bias, lower_bound, GATE: tl.constexpr):
    """Gradient of the gate inputs and, element by element, of `A_log`, from that of the log decay.

    rate: `e^A_log` of the head.  bias: its dt_bias `[K]`.
    """
    if GATE == _LOG_DECAY:
        return dg, dg
    else:
        g += bias[:, None]
        if GATE == _SOFTPLUS:
            return -dg * rate * sigmoid(g), -dg * rate * softplus(g)
        else:
            s = sigmoid(rate * g)
            dx = dg * lower_bound * s * (1.0 - s)
            return dx * rate, dx * rate * g


@triton.jit
def cumulative(step, C: tl.constexpr, OPERAND: tl.constexpr):
    """Running sum over the columns of `step` `[K, C]` fp32. A column's sum knows nothing of later ones."""
    row = tl.arange(0, C)
    return summed(step, row[:, None] <= row[None, :], OPERAND)


@triton.jit
def unit_lower_inverse(lower, C: tl.constexpr):
    """`(I + lower)⁻¹` of a strictly lower triangular `[16, 16]`; row i depends on rows up to i alone.

    Blocks of 4 as `(I − D)(I + D²)`, D⁴ being zero, then blocks of 8 and 16 by `[A 0; C B]⁻¹ = [A' 0; −B' C A' B']`,
    primes for inverses: unlike a power series over all 16 rows it builds no large numbers that cancel.
    """
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    same4, same8 = row // 4 == column // 4, row // 8 == column // 8
    block = tl.where(same4, lower, 0.0)
    inverse = tl.where(row == column, 1.0, 0.0) - block
    square = product(block, block)
    inverse = product(inverse, square, acc=inverse)
    corner = tl.where(same8 & (row // 4 != column // 4), lower, 0.0)
    inverse = _merged(inverse, corner)
    return _merged(inverse, tl.where(same8, 0.0, lower))


@triton.jit
def _merged(inverse, corner):
    left = product(inverse, corner)
    return product(-left, inverse, acc=inverse)
