"""Async plug-ins run in an event loop of their own, so that they work from a thread, an actor or a running loop."""

import asyncio
import inspect
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def resolve(results: Sequence[Any]) -> list[Any]:
    """The results, the awaitable ones among them awaited together."""
    if not any(inspect.isawaitable(result) for result in results):
        return list(results)
    future = asyncio.run_coroutine_threadsafe(_gather(results), _loop(os.getpid()))
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


@lru_cache(maxsize=1)
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """One loop a process, kept: clients that plug-ins keep between batches are bound to it. A fork starts its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="deltarl async rewards", daemon=True).start()
    return loop
