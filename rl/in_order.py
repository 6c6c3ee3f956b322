"""Calls that must not overlap, done one after the other while whoever asked for them does something else."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class InOrder:
    """Does calls in the order in which they are asked for.

    After one has failed, those that follow are not done and fail with the same error: they would build on it.
    """

    def __init__(self, name: str, in_thread: bool):
        """
        Args:
            in_thread: do them in a thread of that name; without it, a call is done before `do` returns.
        """
        self._thread = ThreadPoolExecutor(1, name) if in_thread else None
        self._failed: BaseException | None = None
        self._idle = 0.0
        self._last_end: float | None = None

    def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Asks for `call(*args, **kwargs)`, in the context (contextvars) of whoever asks. Its result, or the exception
        it raised, is in the future."""
        whole = partial(copy_context().run, partial(call, *args, **kwargs))
        if self._thread is not None:
            return self._thread.submit(self._do, whole)
        future = Future[T]()
        try:
            future.set_result(self._do(whole))
        except Exception as error:
            future.set_exception(error)
        return future

    def idle(self) -> float:
        """Seconds without a call between the first and the one under way, which asks, less those told before."""
        idle, self._idle = self._idle, 0.0
        return idle

    def close(self) -> None:
        """Waits for the call under way; those that were to follow are not done."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _do(self, call: Callable[[], T]) -> T:
        if self._failed is not None:
            raise self._failed
        if self._last_end is not None:
            self._idle += time.monotonic() - self._last_end
        try:
            return call()
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._last_end = time.monotonic()
