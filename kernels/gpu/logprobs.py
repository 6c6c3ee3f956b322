"""The two passes over a block of logits of `deltarl.kernels.logprobs` (equations there), each a single one.

A program owns a row of the block. What it computes for the row depends on the width of the block alone, and there is
nothing to tune that would.
"""

import triton
import triton.language as tl
from torch import Tensor

WARPS = 8


@triton.jit(do_not_specialize=["stat_stride"])
def add_block_kernel(stats, logits, target, temperature, width, row_stride, stat_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    z = tl.load(logits + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    z = tl.div_rn(z, tl.full([BLOCK], temperature, tl.float32))
    hit = tl.load(target + row)
    here = tl.sum(tl.where(column == hit, z, 0.0), 0)

    stats += row
    peak = tl.load(stats)
    total = tl.load(stats + stat_stride)
    weighted = tl.load(stats + 2 * stat_stride)
    top = tl.maximum(peak, tl.max(tl.where(inside, z, float("-inf")), 0))
    shifted = z - top
    p = tl.where(inside, tl.exp(shifted), 0.0)
    ratio = tl.exp(peak - top)
    tl.store(stats, top)
    tl.store(stats + stat_stride, ratio * total + tl.sum(p, 0))
    tl.store(stats + 2 * stat_stride, ratio * (weighted + total * (peak - top)) + tl.sum(p * shifted, 0))
    tl.store(stats + 3 * stat_stride, here, mask=(hit >= 0) & (hit < width))


@triton.jit(do_not_specialize=["stat_stride"])
def to_gradient_kernel(logits, target, per_row, temperature, width, row_stride, stat_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    logits += row * row_stride + column
    z = tl.load(logits, mask=inside, other=0.0).to(tl.float32)
    z = tl.div_rn(z, tl.full([BLOCK], temperature, tl.float32))
    hit = tl.load(target + row)

    per_row += row
    peak = tl.load(per_row)
    log_sum = tl.load(per_row + stat_stride)
    entropy = tl.load(per_row + 2 * stat_stride)
    a = tl.load(per_row + 3 * stat_stride)
    b = tl.load(per_row + 4 * stat_stride)
    logp = z - peak - log_sum
    d = tl.where(column == hit, a, 0.0) - tl.exp(logp) * (a + b * (logp + entropy))
    tl.store(logits, d.to(logits.dtype.element_ty), mask=inside)


def add_block(stats: Tensor, logits: Tensor, target: Tensor, temperature: float) -> None:
    """Takes a block of logits into the statistics of its rows.

    Args:
        stats: `[4, R]` fp32 m, s, e and z_t of the blocks before; updated in place.
        logits: `[R, C]` of any float dtype, columns contiguous.
        target: `[R]` int64 tokens, counted from the first of the block.
    """
    rows, width = logits.shape
    if rows:
        # The compiler chooses the order of a sum by what divides the stride, which of a single row may be anything.
        stride = width if rows == 1 else logits.stride(0)
        add_block_kernel[(rows,)](
            stats, logits, target, temperature, width, stride, stats.stride(0),
            BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip


def to_gradient(logits: Tensor, target: Tensor, per_row: Tensor, temperature: float) -> None:
    """Overwrites a block of logits with the gradient of its logits.

    Args:
        logits, target: as for `add_block`.
        per_row: `[5, R]` fp32 m, log s, H, and the gradients of log-probability and entropy over the temperature.
    """
    rows, width = logits.shape
    if rows:
        to_gradient_kernel[(rows,)](
            logits, target, per_row, temperature, width, logits.stride(0), per_row.stride(0),
            BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
