"""Latent attention (MLA) decode in absorbed form over a paged cache: one latent per token, shared by all heads.

With `c_t` the compressed latent of token t, `r_t` its shared key part and `[a_h, b_h]` the absorbed query of head h
(DeepSeek-V2, arXiv 2405.04434, section 2.1):

    out_h = sum_t softmax_t(scale * (a_h·c_t + b_h·r_t)) c_t

Rotary embedding, where a model has it, is part of `b_h` and `r_t` already, so RoPE and NoPE are the same function here.

A long row is cut into splits that run in parallel; a second launch adds their results up. How a row is cut depends on
its own length alone, and blocks and splits are added in order: a row's numbers do not depend on the batch it is in, on
which pages it has, or on how long a row may get.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.backend import FLOATS, MAX_RANK, MAX_ROPE
from deltarl.kernels.gpu.ops import capability, product, rounded

LOG2_E = 1.4426950408889634
COMBINED = 16  # splits that the second launch loads at once


@dataclass(frozen=True)
class Tiling:
    """How the work is cut. Part of the result's rounding, so it may depend on the device and the model, not the batch.

    Attributes:
        heads: heads of one program.  block: tokens of one matrix product.  Powers of two, at least 16.
        split: tokens of one program, until a row has `max_splits` of them: a longer row gets longer splits, which
            bounds the memory for their results (`4 * H * R` bytes a split).
        tokens_first: compute the transposed products, with tokens (and then channels) as the rows of the tensor
            cores' tiles instead of heads. Hopper's own matrix instruction has 64 rows; 32 heads would half fill it.
    """

    heads: int
    block: int
    warps: int
    stages: int
    tokens_first: bool
    split: int = 512
    max_splits: int = 64

    def __post_init__(self) -> None:
        if self.split % self.block:
            raise ValueError(f"a split of {self.split} tokens is not a multiple of blocks of {self.block}")

    @classmethod
    def of(cls, q: Tensor) -> "Tiling":
        """For queries `[B, H, R + rope]`. Sizes are from the compiler's reports for R = 512, rope = 64."""
        if q.dtype == torch.float32:  # exact products run outside the tensor cores, on operands twice the size
            return cls(heads=16, block=16, warps=8, stages=1, tokens_first=False)
        heads = 16 if q.shape[1] <= 16 else 32
        if not q.is_cuda:  # Triton's interpreter
            return cls(heads, block=32, warps=4, stages=1, tokens_first=False)
        if capability(q.device) == 9:  # two tiles in flight, 184 KiB
            return cls(heads, block=64, warps=4, stages=2, tokens_first=True)
        # Two tiles in flight, 110 KiB, or one where there is no room (75 KiB): here, the page number that a tile's
        # address comes from takes stages of its own.
        stages = 5 if _shared_memory(q.device) >= 160 * 1024 else 3
        return cls(heads, block=32, warps=heads // 4, stages=stages, tokens_first=False)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a program can have."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def latent_attention_decode(
    q: Tensor,
    pages: Tensor,
    block_table: Tensor,
    length: Tensor,
    rank: int,
    scale: float,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attention of one new token per row over that row's cached latents; for CUDA graphs, too: nothing is read back.

    Args:
        q: `[B, H, R + rope]` absorbed query: `R = rank` channels against the latent, the rest against the shared key.
        pages: `[P, page_size, R + rope]` cache in q's dtype, page_size a power of two, each page contiguous.
        block_table: `[B, max_pages]` int32; token t of row b is `pages[block_table[b, t // page_size], t % page_size]`.
        length: `[B]` int, tokens the row sees, the new one included, at most `max_pages * page_size`; 0 for an idle
            row, whose output is 0. Entries of the table and tokens of the pages past the length are not used.
        tiling: `Tiling.of(q)` if None.

    Returns:
        `[B, H, R]` in q's dtype, summed in fp32.

    Raises:
        ValueError: sizes or dtypes that do not fit together, or that the kernel does not have.
    """
    batch, heads, width = q.shape
    _check_cache(pages, block_table, width, batch)
    if q.dtype not in FLOATS or pages.dtype != q.dtype:
        raise ValueError(f"q and pages must have one dtype of fp32, bf16, fp16; got {q.dtype} and {pages.dtype}")
    if not 0 < rank <= MAX_RANK or not 0 <= width - rank <= MAX_ROPE:
        raise ValueError(f"rank must be 1..{MAX_RANK} and rope 0..{MAX_ROPE}, got {rank} and {width - rank}")
    if length.shape != (batch,):
        raise ValueError(f"length must be [{batch}], got {list(length.shape)}")
    tiling = tiling or Tiling.of(q)
    capacity = block_table.shape[1] * pages.shape[1]
    num_splits = max(1, min(tiling.max_splits, triton.cdiv(capacity, tiling.split)))
    out = q.new_empty(batch, heads, rank)
    if batch == 0:
        return out
    # Of rows with one split these stay unused: their result goes to `out` at once.
    partial = q.new_empty((batch, num_splits, heads, rank) if num_splits > 1 else (0,), dtype=torch.float32)
    lse = q.new_empty(batch, num_splits, heads, dtype=torch.float32)
    sizes = {"HEADS": heads, "RANK": rank, "R": _padded(rank)}
    cut = {"SPLIT": tiling.split, "MAX_SPLITS": tiling.max_splits, "BLOCK": tiling.block}
    # Head blocks of a row, then rows that may share a prompt's pages, follow each other: they meet in the L2 cache.
    _attend[triton.cdiv(heads, tiling.heads), batch, num_splits](
        q.contiguous(),
        pages,
        block_table,
        length,
        out,
        partial,
        lse,
        scale * LOG2_E,
        pages.stride(0),
        block_table.stride(0),
        **sizes,
        **cut,
        ROPE=width - rank,
        E=_padded(width - rank),
        PAGE=pages.shape[1],
        ROWS=tiling.heads,
        TOKENS_FIRST=tiling.tokens_first,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    if num_splits > 1:
        _combine[heads, batch](partial, lse, length, out, num_splits, **sizes, **cut, TILE=COMBINED, num_warps=4)
    return out


def append_latent(latent: Tensor, pages: Tensor, block_table: Tensor, position: Tensor) -> None:
    """Writes one token's latent `[B, R + rope]` per row into the page slot of `position` `[B]`; below 0: no token.

    One launch. Torch's index operations would take several, and cannot leave a row out without waiting for the
    device. The pages of the positions must be allocated (`block_table`), and no two tokens may share a slot.
    """
    _store(latent, pages, block_table, None, position)


def store_latents(latent: Tensor, pages: Tensor, block_table: Tensor, rows: Tensor, position: Tensor) -> None:
    """As `append_latent` for the packed tokens of a prefill: latent `[T, R + rope]`, `rows` `[T]` row of the table."""
    _store(latent, pages, block_table, rows, position)


def _store(latent: Tensor, pages: Tensor, block_table: Tensor, rows: Tensor | None, position: Tensor) -> None:
    tokens, width = latent.shape
    _check_cache(pages, block_table, width, tokens if rows is None else None)
    for name, index in (("position", position), ("rows", rows)):
        if index is not None and index.shape != (tokens,):
            raise ValueError(f"{name} must be [{tokens}], got {list(index.shape)}")
    if tokens == 0:
        return
    _write[(tokens,)](
        latent.contiguous(),
        pages,
        block_table,
        position if rows is None else rows,
        position,
        pages.stride(0),
        block_table.stride(0),
        WIDTH=width,
        W=triton.next_power_of_2(width),
        PAGE=pages.shape[1],
        PACKED=rows is not None,
        num_warps=2,
    )


def _check_cache(pages: Tensor, block_table: Tensor, width: int, batch: int | None) -> None:
    if pages.ndim != 3 or pages.shape[2] != width or not (pages.numel() == 0 or pages[0].is_contiguous()):
        raise ValueError(f"pages must be [P, page_size, {width}], each page contiguous; got {list(pages.shape)}")
    if pages.shape[1] & (pages.shape[1] - 1):
        raise ValueError(f"page_size must be a power of two, got {pages.shape[1]}")
    if block_table.ndim != 2 or block_table.shape[0] != (len(block_table) if batch is None else batch):
        raise ValueError(f"block_table must be [{'B' if batch is None else batch}, max_pages]")
    if block_table.stride(1) != 1:
        raise ValueError("each row of block_table must be contiguous")


def _padded(channels: int) -> int:
    """Channels of a tile: a power of two that the tensor cores take."""
    return max(16, triton.next_power_of_2(channels))


@triton.jit
def _split_tokens(length, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens in each split of a row, a multiple of BLOCK where it is not SPLIT."""
    return tl.maximum(SPLIT, tl.cdiv(tl.cdiv(length, MAX_SPLITS), BLOCK) * BLOCK)


@triton.jit
def _slots(table, first, end, page_stride, BLOCK: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr):
    """`[BLOCK]` offsets of the tokens from `first` on, a multiple of BLOCK; anything from `end` on.

    A page number is read once, not once per token: the compiler then sees addresses a constant apart, and keeps one
    per page in registers.
    """
    token = tl.arange(0, BLOCK)
    if PAGE >= BLOCK:
        return tl.load(table + first // PAGE).to(tl.int64) * page_stride + (first % PAGE + token) * WIDTH
    last = (end - 1) // PAGE
    page = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(BLOCK // PAGE):
        page = tl.where(token // PAGE == i, tl.load(table + tl.minimum(first // PAGE + i, last)), page)
    return page.to(tl.int64) * page_stride + (token % PAGE) * WIDTH


@triton.jit(do_not_specialize=["table_stride"])  # or it would be compiled once more for another capacity
def _attend(
    q,
    pages,
    table,
    lengths,
    out,
    partial,
    lse,
    scale,  # times log2(e): powers are of two below
    page_stride,
    table_stride,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROPE: tl.constexpr,
    E: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS_FIRST: tl.constexpr,
):
    """Attention of ROWS heads over one split: the normalised result and the base-2 log of its denominator."""
    row = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    split = _split_tokens(length, SPLIT, MAX_SPLITS, BLOCK)
    start = tl.program_id(2) * split
    if start >= length and start > 0:
        return
    end = tl.minimum(start + split, length)
    TOKENS: tl.constexpr = 0 if TOKENS_FIRST else 1  # axis of scores
    HEAD: tl.constexpr = 1 - TOKENS

    head = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, R)
    rope = tl.arange(0, E)
    real = (head < HEADS)[:, None]
    query_row = (q + (row * HEADS + head) * (RANK + ROPE))[:, None]
    query = tl.load(query_row + rank[None, :], mask=real & (rank < RANK)[None, :], other=0.0)
    query_rope = tl.load(query_row + RANK + rope[None, :], mask=real & (rope < ROPE)[None, :], other=0.0)

    if TOKENS_FIRST:
        query, query_rope = tl.trans(query), tl.trans(query_rope)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([R, ROWS] if TOKENS_FIRST else [ROWS, R], tl.float32)
    for first in range(start, end, BLOCK):
        seen = first + tl.arange(0, BLOCK) < end
        cached = (pages + _slots(table + row * table_stride, first, end, page_stride, BLOCK, PAGE, RANK + ROPE))[
            :, None
        ]
        # Zeros where nothing was written: a weight of 0 does not hide what is not finite.
        latent = tl.load(cached + rank[None, :], mask=seen[:, None] & (rank < RANK)[None, :], other=0.0)
        key = tl.load(cached + RANK + rope[None, :], mask=seen[:, None] & (rope < ROPE)[None, :], other=0.0)
        if TOKENS_FIRST:
            score = product(key, query_rope, product(latent, query))
        else:
            score = product(query_rope, tl.trans(key), product(query, tl.trans(latent)))
        score = tl.where(tl.expand_dims(seen, HEAD), score * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, TOKENS))
        weight = tl.exp2(score - tl.expand_dims(new_top, TOKENS))
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, TOKENS)
        mixed = mixed * tl.expand_dims(shrink, TOKENS)
        weight = rounded(weight, latent.dtype)
        if TOKENS_FIRST:
            mixed = product(tl.trans(latent), weight, mixed)
        else:
            mixed = product(weight, latent, mixed)
        top = new_top

    mixed = mixed / tl.expand_dims(tl.where(length > 0, total, 1.0), TOKENS)
    if TOKENS_FIRST:
        mixed = tl.trans(mixed)
    mask = real & (rank < RANK)[None, :]
    if length <= split:
        target = out + ((row * HEADS + head) * RANK)[:, None] + rank[None, :]
        tl.store(target, rounded(mixed, out.dtype.element_ty), mask=mask)
    else:
        slot = (row * tl.num_programs(2) + tl.program_id(2)) * HEADS + head
        tl.store(lse + slot, top + tl.log2(total), mask=head < HEADS)
        tl.store(partial + (slot * RANK)[:, None] + rank[None, :], mixed, mask=mask)


@triton.jit(do_not_specialize=["num_splits"])  # as above
def _combine(
    partial,
    lse,
    lengths,
    out,
    num_splits,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """One head of one row: the mean of its splits' results, weighted by their denominators."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    used = tl.cdiv(length, _split_tokens(length, SPLIT, MAX_SPLITS, BLOCK))
    if used <= 1:
        return
    rank = tl.arange(0, R)
    top = float("-inf")
    total = 0.0
    mixed = tl.zeros([R], tl.float32)
    for first in range(0, used, TILE):
        split = first + tl.arange(0, TILE)
        slot = (row * num_splits + split) * HEADS + head
        size = tl.load(lse + slot, mask=split < used, other=float("-inf"))
        mask = (split < used)[:, None] & (rank < RANK)[None, :]
        part = tl.load(partial + slot[:, None] * RANK + rank[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(size, 0))
        weight = tl.exp2(size - new_top)
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 0)
        mixed = mixed * shrink + tl.sum(weight[:, None] * part, 0)
        top = new_top
    mixed = mixed / total
    tl.store(out + (row * HEADS + head) * RANK + rank, rounded(mixed, out.dtype.element_ty), mask=rank < RANK)


@triton.jit(do_not_specialize=["table_stride"])
def _write(
    latent,
    pages,
    table,
    rows,
    positions,
    page_stride,
    table_stride,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    PAGE: tl.constexpr,
    PACKED: tl.constexpr,
):
    """One token into its page."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    if position < 0:
        return
    row = token
    if PACKED:
        row = tl.load(rows + token).to(tl.int64)
    page = tl.load(table + row * table_stride + position // PAGE).to(tl.int64)
    channel = tl.arange(0, W)
    value = tl.load(latent + token * WIDTH + channel, mask=channel < WIDTH)
    target = pages + page * page_stride + (position % PAGE) * WIDTH + channel
    tl.store(target, value.to(pages.dtype.element_ty), mask=channel < WIDTH)
