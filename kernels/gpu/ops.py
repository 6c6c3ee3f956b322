"""Small device functions that the Triton kernels here share.

They are written so that a number does not depend on which kernel computes it. Sums are taken by matrix products of
tiles of one shape, whose rows do not know of each other (the order of Triton's reductions depends on a tile's layout,
hence on the kernel); sums of one term and zeros may be reductions. Multiply-adds are spelled out where the compiler
might contract them in one kernel and not in another.
"""

import torch
import triton
import triton.language as tl

# Kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1): a few of its operations need help below.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def registers(most: int) -> dict[str, int]:
    """Launch option that caps the registers of a thread, so that more programs fit on a multiprocessor."""
    return {} if INTERPRETED.value else {"maxnreg": most}


@triton.jit
def silu(x):
    """`x · sigmoid(x)` of fp32 `x`."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def sigmoid(x):
    """Of fp32 `x`."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """`log(1 + e^x)` of fp32 `x`, to relative precision also far below 0, where the gates of slow channels are.

    `max(x, 0) + log(1 + u)`, `u = e^{-|x|}`, with `log(1 + u) = 2 artanh(s)`, `s = u / (2 + u) ≤ 1/3`, as a series.
    """
    u = tl.exp(-tl.abs(x))
    s = u / (2.0 + u)
    t = s * s
    series = tl.zeros_like(t) + 2.0 / 15.0
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 13.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 11.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 9.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 7.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 5.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0 / 3.0)
    series = tl.fma(series, t, tl.zeros_like(t) + 2.0)
    return tl.fma(series, s, tl.maximum(x, 0.0))


@triton.jit
def product(a, b, acc=None):
    """`a @ b + acc` with fp32 sums; fp32 operands are multiplied as such (no tf32)."""
    if INTERPRETED:
        # Triton's interpreter multiplies the bit patterns of bf16, and numpy adds in an order that depends on shapes:
        # in fp64 neither matters.
        total = tl.dot(a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64)).to(tl.float32)
        return total if acc is None else total + acc
    return tl.dot(a, b, acc=acc, input_precision="ieee")


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to nearest in DTYPE."""
    if INTERPRETED:  # Triton's interpreter truncates to bf16
        if DTYPE == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            bits += 0x7FFF + ((bits >> 16) & 1)
            x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def precise_product(a, b, OPERAND: tl.constexpr, acc=None):
    """`a @ b + acc` of fp32 tiles to about fp32 precision; on tensor cores, split in parts, where OPERAND is bf16.

    Narrow tiles are multiplied one term after the other: there the tensor cores' order of terms depends on the kernel.
    """
    if INTERPRETED:
        return product(a, b, acc)
    elif OPERAND == tl.float32 or a.shape[0] < 64:
        return tl.dot(a, b, acc=acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc=acc, input_precision="tf32x3")


@triton.jit
def column_squares(x, C: tl.constexpr, acc=None):
    """`Σ_d x²` of every column of a tile `[D, C]`, `[C]` fp32, on top of `acc`: the diagonal of `xᵀ x`.

    Triton's own sums take their terms in an order that depends on the kernel around them; a matrix product does not.
    """
    row = tl.arange(0, C)
    diagonal = row[:, None] == row[None, :]
    if acc is None:
        gram = product(tl.trans(x), x)
    else:
        gram = product(tl.trans(x), x, acc=tl.where(diagonal, acc[:, None], 0.0))
    return tl.sum(tl.where(diagonal, gram, 0.0), 1)
