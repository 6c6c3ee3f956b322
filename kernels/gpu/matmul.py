"""Matrix products whose rows do not know of each other: `a @ b` adds over the inner dimension in one order, always.

A library picks a kernel by the shapes, and one that cuts the inner dimension into pieces rounds otherwise: a token then
gets other numbers in another batch. Here every element is the sum of its products in order, in steps of the tensor
cores' own size; how many rows and columns a program has changes nothing (tests/kernels/gpu/test_gpu_matmul.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.backend import FLOATS
from deltarl.kernels.gpu.ops import product, rounded

GROUP = 8  # blocks of rows that go through the columns together, so that both meet in the L2 cache


@triton.jit
def matmul_kernel(
    a, b, bias, out, m, n, k,
    a_batch, a_row, a_col, b_batch, b_row, b_col, out_batch, out_row,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    down, across = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    row = (first + program % height) * BM + tl.arange(0, BM)
    column = (program % (GROUP * across)) // height * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    # Rows and columns past the end compute with others' numbers, and are not stored.
    a += batch * a_batch + (row % m).to(tl.int64)[:, None] * a_row + inner[None, :] * a_col
    b += batch * b_batch + (column % n).to(tl.int64)[None, :] * b_col + inner[:, None] * b_row
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, k, BK):
        left = tl.load(a, (inner < k - start)[None, :], 0.0)
        right = tl.load(b, (inner < k - start)[:, None], 0.0)
        total = product(left, right, total)
        a += BK * a_col
        b += BK * b_row
    if bias is not None:
        total += tl.load(bias + column, column < n, 0.0).to(tl.float32)[None, :]
    out += batch * out_batch + row.to(tl.int64)[:, None] * out_row + column[None, :]
    tl.store(out, rounded(total, out.dtype.element_ty), (row < m)[:, None] & (column < n)[None, :])


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a @ b + bias`, fp32 sums rounded to a's dtype; fp32 operands are multiplied as such (no tf32).

    Args:
        a: `[m, k]` or `[G, m, k]`.  b: `[k, n]` or `[G, k, n]`, any strides.  bias: `[n]` or None.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or that tensor cores do not have.
    """
    if a.dtype != b.dtype or a.dtype not in FLOATS:
        raise ValueError(f"a product takes two fp32, bf16 or fp16 matrices, got {a.dtype} and {b.dtype}")
    if a.ndim != b.ndim or a.ndim not in (2, 3) or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"cannot multiply {list(a.shape)} by {list(b.shape)}")
    batch = a.shape[0] if a.ndim == 3 else 1
    (m, k), n = a.shape[-2:], b.shape[-1]
    out = a.new_empty(*a.shape[:-1], n)
    if not out.numel():
        return out
    rows, columns, inner, warps, stages = _tile(m, n, a.dtype)
    a_batch, b_batch, out_batch = (x.stride(0) if x.ndim == 3 else 0 for x in (a, b, out))
    matmul_kernel[triton.cdiv(m, rows) * triton.cdiv(n, columns), batch](
        a, b, bias, out, m, n, k,
        a_batch, a.stride(-2), a.stride(-1), b_batch, b.stride(-2), b.stride(-1), out_batch, out.stride(-2),
        BM=rows, BN=columns, BK=inner, GROUP=GROUP, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _tile(m: int, n: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Rows, columns, inner size, warps and stages of a program: few rows read weights only, by many programs."""
    if dtype == torch.float32:
        return (16, 64, 32, 4, 2) if m <= 64 else (64, 64, 32, 8, 2)
    if m <= 16:
        return (16, 32, 128, 4, 4) if n <= 8192 else (16, 128, 64, 4, 5)
    if m <= 32:
        return (32, 32, 128, 4, 4) if n <= 8192 else (32, 128, 64, 4, 4)
    if m <= 128:
        return (64, 32, 128, 4, 4) if n <= 8192 else (64, 128, 64, 4, 4)
    if m <= 512:
        return 64, 128, 64, 4, 4
    return 128, 256, 64, 8, 3
