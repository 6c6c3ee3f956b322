"""Small device functions that the Triton kernels here share.

They are written so that a number does not depend on which kernel computes it. Sums are taken by matrix products of
tiles of one shape, whose rows do not know of each other (the order of Triton's reductions depends on a tile's layout,
hence on the kernel); sums of one term and zeros may be reductions. Multiply-adds are spelled out where the compiler
might contract them in one kernel and not in another.
"""

from functools import cache

import torch
import triton
import triton.language as tl

# Kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1): a few of its operations need help below.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 of a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def capability(device: torch.device) -> int:
    """Major compute capability of a GPU; 0 of a CPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def registers(most: int) -> dict[str, int]:
    """Launch option that caps the registers of a thread, so that more programs fit on a multiprocessor."""
    return {} if INTERPRETED.value else {"maxnreg": most}


@triton.jit
def exponential(x):
    """`e^x` of fp32 `x`; 0 below 2^-126. The compiler's own spends three times the instructions on such results."""
    y = x * 1.4426950408889634
    if INTERPRETED:
        return tl.exp2(y)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """`1 / x` of fp32 `x`, to the last bit but one."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x):
    """Of fp32 `x`."""
    return reciprocal(1.0 + exponential(-x))


@triton.jit
def silu(x):
    """`x · sigmoid(x)` of fp32 `x`."""
    return x * sigmoid(x)


@triton.jit
def softplus(x):
    """`log(1 + e^x)` of fp32 `x`, to relative precision also far below 0, where the gates of slow channels are.

    `max(x, 0) + log(1 + u)`, `u = e^{-|x|}`, with `log(1 + u) = 2 artanh(s)`, `s = u / (2 + u) ≤ 1/3`, as a series.
    """
    u = exponential(-tl.abs(x))
    s = u * reciprocal(2.0 + u)
    t = s * s
    series = tl.fma(t, tl.zeros_like(t) + 2.0 / 15.0, tl.zeros_like(t) + 2.0 / 13.0)
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
def operand(x, OPERAND: tl.constexpr):
    """fp32 `x` rounded, two numbers per instruction.

    Where the result is used in fp32 too, the compiler rounds one number at a time, at an eighth of the rate.
    """
    if INTERPRETED:
        return rounded(x, OPERAND)
    elif tl.float32 == OPERAND:
        return x
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )


@triton.jit
def spread(x, factor, C: tl.constexpr):
    """fp32 `factor · x` of an operand `[K, C]`, exactly: the product with a multiple of the identity.

    It comes in the layout of all other products, and the compiler does not compute it again in a second layout.
    """
    if x.dtype == tl.float32:
        return factor * x  # products of fp32 have no layout of their own
    row = tl.arange(0, C)
    y = product(x, tl.where(row[:, None] == row[None, :], factor, 0.0).to(x.dtype))
    if INTERPRETED:
        return y
    # Out of the compiler's sight: it would make a sum `y + z` start the product's accumulator with z, which does not
    # round to nearest.
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def summed(x, which, OPERAND: tl.constexpr, acc=None):
    """`acc + x @ which` of fp32 `x` and a tile `which` of booleans, to fp32 precision.

    Three bf16 parts hold all of an fp32, and products with 1 are exact.
    """
    ones = tl.where(which, 1.0, 0.0).to(OPERAND)
    high = operand(x, OPERAND)
    acc = product(high, ones, acc=acc)
    if high.dtype != tl.float32:
        x -= high.to(tl.float32)
        middle = operand(x, OPERAND)
        acc = product(middle, ones, acc=acc)
        acc = product(operand(x - middle.to(tl.float32), OPERAND), ones, acc=acc)
    return acc


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
