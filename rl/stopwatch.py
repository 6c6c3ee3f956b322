"""How long the phases of a step take."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Spans = Callable[[str], AbstractContextManager[None]]
"""Makes a block that is a phase of that name, for a timeline."""


class Stopwatch:
    """Adds up the seconds spent in each phase."""

    def __init__(self, spans: Spans) -> None:
        self.seconds: dict[str, float] = {}
        self._spans = spans

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        with self._spans(phase):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - start
