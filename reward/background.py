"""Async plug-ins run in an event loop of their own, so that they work from a thread, an actor or a running loop."""

import asyncio
import inspect
import threading
from collections.abc import Sequence
from typing import Any

from deltarl.reward import forks


def resolve(results: Sequence[Any]) -> list[Any]:
    """The results, the awaitable ones among them awaited together."""
    if not any(inspect.isawaitable(result) for result in results):
        return list(results)
    future = asyncio.run_coroutine_threadsafe(_gather(results), _background.loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C here must not leave requests going on over there
        raise


async def _gather(results: Sequence[Any]) -> list[Any]:
    tasks = [asyncio.ensure_future(_value(result)) for result in results]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class _Background:
    """One loop in each process, kept: clients that plug-ins keep between batches are bound to it."""

    def __init__(self) -> None:
        self.after_fork()
        forks.register(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="deltarl async rewards", daemon=True).start()
            return self._loop


_background = _Background()
