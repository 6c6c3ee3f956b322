"""Decoding captured in CUDA graphs: a step is one launch instead of hundreds, each of which would wait for Python."""

import torch
from torch import Tensor

from deltarl.kernels.backend import MAX_RANK, MAX_ROPE, choose_backend
from deltarl.model.cache import PAGE_SIZE, HybridCache
from deltarl.model.config import mlp_kinds
from deltarl.model.hybrid import HybridForCausalLM

IDLE = -1  # length of a row that is nobody's: kernels leave it alone


class DecodeGraphs:
    """`model.decode` over the first rows of a cache.

    A graph has fixed shapes. There is one for each bucket of rows and of pages that was needed so far, captured when it
    first was; rows of a bucket that nobody has stand idle. All graphs share the memory of their intermediates, because
    only one runs at a time, and leave their logits in one place, which the next step overwrites.
    """

    def __init__(self, model: HybridForCausalLM, cache: HybridCache, ids: Tensor):
        """
        Args:
            cache: on a GPU; its memory must stay where it is.
            ids: `[rows]` int64, where the token that each row is fed is found.
        """
        self._model, self._cache, self._ids = model, cache, ids
        self._logits = torch.empty(len(ids), model.config.vocab_size, device=ids.device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle()

    @staticmethod
    def can_capture(model: HybridForCausalLM) -> bool:
        """Whether a step never asks the device anything: the Triton kernels do not, a mixture of experts does."""
        config, weight = model.config, model.lm_head.weight
        dim = config.linear_head_dim
        return (
            weight.is_cuda
            and choose_backend(weight.device, weight.dtype, dim, dim) == "triton"
            and config.kv_lora_rank <= MAX_RANK
            and config.qk_rope_head_dim <= MAX_ROPE
            and "sparse" not in mlp_kinds(config)
        )

    def decode(self, active: int, longest: int) -> Tensor:
        """Feeds rows `0..active-1` their tokens; returns the next logits `[active, vocab]`, valid until the next call.

        Args:
            longest: at least the length of each of these rows before this token.
        """
        rows = row_bucket(active, len(self._ids))
        pages = page_bucket(longest // PAGE_SIZE + 1, self._cache.block_table.shape[1])
        self._cache.length[active:rows] = IDLE
        if (rows, pages) not in self._graphs:
            self._graphs[rows, pages] = self._capture(rows, pages)
        self._graphs[rows, pages].replay()
        return self._logits[:active]

    def _capture(self, rows: int, pages: int) -> torch.cuda.CUDAGraph:
        every = self._cache.length[:rows].clone()
        self._cache.length[:rows] = IDLE
        self._step(rows, pages)  # compiles and allocates what is there once and for all
        self._cache.length[:rows] = every
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            self._step(rows, pages)
        return graph

    def _step(self, rows: int, pages: int) -> None:
        logits = self._model.decode(self._ids[:rows], self._cache.view(rows), longest=pages * PAGE_SIZE - 1)
        self._logits[:rows] = logits


def row_bucket(rows: int, most: int) -> int:
    """Powers of two up to 16, then steps of an eighth or less of the bucket, at least 8."""
    step = 8
    while rows > 16 * step:
        step *= 2
    rounded = 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // step) * step
    return min(rounded, most)


def page_bucket(pages: int, most: int) -> int:
    """Powers of two: attention skips pages that a row does not have, so more of them cost idle programs only."""
    return min(1 << (pages - 1).bit_length(), most)
