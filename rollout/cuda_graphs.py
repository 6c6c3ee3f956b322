"""Device work captured in CUDA graphs: one launch instead of hundreds, each of which would wait for Python."""

from collections.abc import Callable, Hashable

import torch

from deltarl.kernels.batch_invariant import is_batch_invariant


class CudaGraphs:
    """Work of fixed shapes on memory that stays where it is.

    All graphs share the memory of their intermediates, because only one runs at a time: what is to last longer than
    until the next one runs, the work has to write to memory of its own.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does the work, which must ask the device nothing and leave nothing on the host; captures it the first time.

        Args:
            key: everything that the work's launches depend on, but for batch-invariant mode.
        """
        key = (is_batch_invariant(), key)
        if (graph := self._graphs.get(key)) is not None:
            graph.replay()
            return
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Does nothing yet. Other threads may go on asking for memory, as one that fetches weights does.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph


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
