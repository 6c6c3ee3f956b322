"""Small device functions that the Triton kernels here share.

They are written so that a number does not depend on which kernel computes it: sums over channels are taken as a fixed
tree (the order of Triton's own reductions depends on a tile's layout, hence on the kernel), multiply-adds are spelled
out where the compiler might contract them in one kernel and not in another, and matrix products take their terms in
the order of the inner dimension.
"""

import torch
import triton
import triton.language as tl

# Kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1): a few of its operations need help below.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the operands of matrix products for inputs of `dtype`: fp32 for fp32, else bf16.

    fp16 inputs get bf16 operands too, because decay factors leave the range of fp16.
    """
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


@triton.jit
def tree_sum(x, ROWS: tl.constexpr, D: tl.constexpr):
    """`[ROWS, D]` to `[ROWS]`, neighbours first: the same order of additions in every kernel. D a power of two ≤ 1024."""
    for level in tl.static_range(10):
        if (D >> level) > 1:
            even, odd = tl.split(tl.reshape(x, [ROWS, D >> (level + 1), 2]))
            x = even + odd
    return tl.reshape(x, [ROWS])


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

    `log1p(u) = log(w) · u / (w − 1)` with `w = 1 + u` rounded (Kahan): the errors of `log(w)` and `w − 1` cancel.
    """
    u = tl.exp(-tl.abs(x))
    w = 1.0 + u
    log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def product(a, b, acc=None):
    """`a @ b + acc` with fp32 sums; fp32 operands are multiplied as such (no tf32)."""
    if INTERPRETED:  # Triton's interpreter multiplies the bit patterns of bf16
        a, b = a.to(tl.float32), b.to(tl.float32)
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
