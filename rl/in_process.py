"""A run without Ray: its workers and its learner are plain objects of this process, one after the other at work.

For a debugger or a notebook, and to tell what Ray costs. The curve is the one of the same run under Ray.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from deltarl.actor.host import WorkerSpec


class InProcess:
    """One object in the place of `size` workers of a fleet, or of the only rank of a gang."""

    restarts = 0

    def __init__(self, spec: WorkerSpec, size: int = 1):
        torch.set_num_threads(spec.num_threads)
        self._spec, self._size = spec, size
        with self._watched("start"):
            self.worker = spec.cls(*spec.args, **spec.kwargs)

    def __len__(self) -> int:
        return self._size

    def map(self, method: str, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`worker.method(*item)` for every item."""
        return [self.first(method, *item) for item in items]

    scatter = map

    def attempt(self, method: str, items: Sequence[tuple[Any, ...]], max_deaths: int) -> list[Any]:
        """As `map`: what kills this worker kills the run."""
        return self.map(method, items)

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """`worker.method(*args)`, once."""
        return [self.first(method, *args)]

    def first(self, method: str, *args: Any) -> Any:
        """What `worker.method(*args)` returns."""
        with self._watched(method):
            return getattr(self.worker, method)(*args)

    def close(self) -> None:
        """Ends what the worker started."""
        if hasattr(self.worker, "close"):
            self.worker.close()

    @contextmanager
    def _watched(self, method: str) -> Iterator[None]:
        if self._spec.watch is None:
            yield
            return
        number = self._spec.watch.begin(self._spec.fleet, self._spec.index, method)
        try:
            yield
        finally:
            self._spec.watch.end(number)
