"""Who owns which pages of the latent pools. Kept on the host, where a step needs no answer from the device for it."""

import numpy as np
import torch
from torch import Tensor

from deltarl.model.cache import PAGE_SIZE


class Pages:
    """Page 0 is nobody's: rows that stand idle write there. A page that several rows share is never written again.

    Attributes:
        length: `[rows]` tokens of each row, as its owner keeps it.
    """

    def __init__(self, block_table: Tensor, num_pages: int):
        """
        Args:
            block_table: of the cache, `[rows, max_pages]` int32; `push` updates it.
            num_pages: of the pools, page 0 included.
        """
        self._device_table = block_table
        self._table = np.zeros(tuple(block_table.shape), np.int32)
        self._used = np.zeros(len(block_table), np.int64)
        self._owners = np.zeros(num_pages, np.int64)
        self._free = list(range(num_pages - 1, 0, -1))
        self._changed: set[int] = set()
        self.length = np.zeros(len(block_table), np.int64)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def total(self) -> int:
        return len(self._owners) - 1

    def wanted(self, rows: slice | int, lengths: np.ndarray | int) -> int:
        """Pages that these rows lack to hold `lengths` tokens each."""
        return int(np.maximum(pages_of(lengths) - self._used[rows], 0).sum())

    def grow(self, rows: slice, lengths: np.ndarray) -> None:
        """Gives rows the pages that they lack; there must be enough (`wanted`)."""
        lacking = np.flatnonzero(pages_of(lengths) > self._used[rows])
        for i in lacking.tolist():
            self.grow_row((rows.start or 0) + i, int(lengths[i]))

    def fork(self, source: int, target: int) -> tuple[int, int] | None:
        """An empty row shares the full pages of another, and gets one of its own for the tokens on the last page.

        Returns:
            That page of the source and that of the target, to be copied on the device; None if the last page is full.
        """
        length = int(self.length[source])
        full = length // PAGE_SIZE
        shared = self._table[source, :full]
        self._table[target, :full] = shared
        self._owners[shared] += 1
        self._used[target], self.length[target] = full, length
        self._changed.add(target)
        if length % PAGE_SIZE == 0:
            return None
        self.grow_row(target, length)
        return int(self._table[source, full]), int(self._table[target, full])

    def move(self, source: int, target: int) -> None:
        """An empty row takes over all that another has."""
        self._table[target], self._used[target] = self._table[source], self._used[source]
        self.length[target] = self.length[source]
        self._table[source], self._used[source], self.length[source] = 0, 0, 0
        self._changed |= {source, target}

    def release(self, row: int) -> None:
        """The row gives back what it has."""
        pages = self._table[row, : self._used[row]]
        self._owners[pages] -= 1
        self._free += pages[self._owners[pages] == 0].tolist()
        self._table[row], self._used[row], self.length[row] = 0, 0, 0
        self._changed.add(row)

    def push(self) -> None:
        """Brings the device's table up to date."""
        if self._changed:
            rows = sorted(self._changed)
            new = torch.from_numpy(self._table[rows]).to(self._device_table.device, non_blocking=True)
            self._device_table[torch.tensor(rows, device=new.device)] = new
            self._changed.clear()

    def grow_row(self, row: int, length: int) -> None:
        """`grow` for one row."""
        used, wanted = int(self._used[row]), int(pages_of(length))
        if wanted > used:
            pages = [self._free.pop() for _ in range(wanted - used)]
            self._table[row, used:wanted] = pages
            self._owners[pages] += 1
            self._used[row] = wanted
            self._changed.add(row)


def pages_of(length: np.ndarray | int) -> np.ndarray | int:
    """Pages that so many tokens take."""
    return -(-length // PAGE_SIZE)
