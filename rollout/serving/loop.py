"""A thread that owns the engine. Requests come in through a queue; what they have become goes back to asyncio."""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams

log = logging.getLogger(__name__)

# Of the engine's time, for telling streams how far they are: it takes longer the longer the answers are.
PROGRESS_SHARE = 0.1


class ServedEngine(Protocol):
    """What is served: `rollout.Engine`, or what a test puts in its place. Only the loop's thread calls it."""

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...
    def abort_request(self, request_id: str) -> None: ...
    def has_unfinished_requests(self) -> bool: ...
    def step(self) -> list[RequestOutput]: ...
    def progress(self, request_id: str) -> RequestOutput: ...
    def stats(self) -> Any: ...


class QueueFullError(Exception):
    """There are as many requests as the server takes."""


class EngineDeadError(Exception):
    """The engine has failed, or is being shut down; it serves nobody any more."""


class Ticket:
    """One request, on the side of asyncio. Made by `EngineLoop.submit`."""

    def __init__(self, request_id: str, prompt: Sequence[int], params: SamplingParams, stream: bool):
        self.id, self.prompt, self.params, self.stream = request_id, list(prompt), params, stream
        # What there is of the answer is cumulative, so that only the newest has to be kept: a slow reader gets larger
        # pieces, not a longer queue. The thread makes the next one when this was taken.
        self.taken = True
        self._latest: RequestOutput | Exception | None = None
        self._changed = asyncio.Event()

    async def updates(self) -> AsyncIterator[RequestOutput]:
        """What there is of the answer, again and again (once, without `stream`), the whole of it last.

        Raises:
            ValueError: the engine refused the request.
            EngineDeadError: the engine failed.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            latest = self._latest
            assert latest is not None
            if isinstance(latest, Exception):
                raise latest
            self.taken = True
            yield latest
            if latest.finished:
                return

    def put(self, latest: RequestOutput | Exception) -> None:
        """Called in asyncio's thread. What came last, stays: nothing follows the end of a request."""
        self._latest = latest
        self._changed.set()


class EngineLoop:
    """Runs the engine while it has work. All methods are for asyncio's thread; `start` comes first."""

    def __init__(self, engine: ServedEngine, max_queue: int):
        """
        Args:
            engine: not used by anyone else from now on.
            max_queue: requests at work or waiting, at most; `submit` refuses more.
        """
        self.max_queue = max_queue
        self.error: Exception | None = None  # what ended the loop
        self.stats = engine.stats()  # of not long ago
        self._engine = engine
        self._tickets: dict[str, Ticket] = {}
        self._inbox: queue.SimpleQueue[Ticket | str | None] = queue.SimpleQueue()  # new, aborted, or: that's all
        self._streams: dict[str, Ticket] = {}  # the thread's own
        self._next_progress = 0.0
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Ends the thread after the step it is in, and whatever request is still open."""
        self.error = self.error or EngineDeadError("the server is shutting down")
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        self._fail_all(self.error)

    @property
    def open_requests(self) -> int:
        return len(self._tickets)

    def check_room(self, requests: int) -> None:
        """
        Raises:
            QueueFullError: no room for so many requests.
            EngineDeadError: the engine failed before, or is shutting down.
        """
        if self.error is not None:
            raise EngineDeadError(str(self.error)) from self.error
        if self.open_requests + requests > self.max_queue:
            raise QueueFullError(f"{self.open_requests} requests are at work or waiting, and {self.max_queue} may be")

    def submit(self, prompt: Sequence[int], params: SamplingParams, stream: bool) -> Ticket:
        """Queues a request; `release` must follow in any case. Raises what `check_room` raises."""
        self.check_room(1)
        ticket = Ticket(f"request-{next(self._numbers)}", prompt, params, stream)
        self._tickets[ticket.id] = ticket
        self._inbox.put(ticket)
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forgets a request, and aborts it if it is not finished."""
        if self._tickets.pop(ticket.id, None) is not None:
            self._inbox.put(ticket.id)

    # --------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            while self._take_in():
                finished = self._engine.step()
                self.stats = self._engine.stats()  # first, so that who has heard of a step finds it there
                for output in finished:
                    self._streams.pop(output.request_id, None)
                    self._send(output.request_id, output)
                self._report_progress()
        except Exception as error:
            log.exception("the engine failed; the requests that it had are answered with status 500")
            self.error = error
            self._asyncio.call_soon_threadsafe(self._fail_all, error)

    def _report_progress(self) -> None:
        """Sends the streams what there is, unless that would take a larger part of the time than `PROGRESS_SHARE`."""
        began = time.monotonic()
        if began < self._next_progress:
            return
        for ticket in self._streams.values():
            if ticket.taken:
                ticket.taken = False
                self._send(ticket.id, self._engine.progress(ticket.id))
        self._next_progress = began + (time.monotonic() - began) / PROGRESS_SHARE

    def _take_in(self) -> bool:
        """Gives the engine what came in; waits for it if there is nothing else to do. False at the end."""
        while True:
            idle = not self._engine.has_unfinished_requests()
            if idle:
                self.stats = self._engine.stats()  # without those aborted since the last step
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, Ticket):
                self._add(item)
            else:
                self._streams.pop(item, None)
                self._engine.abort_request(item)

    def _add(self, ticket: Ticket) -> None:
        try:
            self._engine.add_request(ticket.id, ticket.prompt, ticket.params)
        except ValueError as error:  # this request is bad, and no other is harmed
            self._send(ticket.id, error)
        else:
            if ticket.stream:
                self._streams[ticket.id] = ticket

    def _send(self, request_id: str, latest: RequestOutput | Exception) -> None:
        self._asyncio.call_soon_threadsafe(self._receive, request_id, latest)

    # ------------------------------------------------------------------------------------------ back in asyncio's

    def _receive(self, request_id: str, latest: RequestOutput | Exception) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is None:
            return  # released meanwhile
        if isinstance(latest, Exception) or latest.finished:
            del self._tickets[request_id]
        ticket.put(latest)

    def _fail_all(self, error: Exception) -> None:
        for ticket in self._tickets.values():
            ticket.put(EngineDeadError(str(error)))
        self._tickets.clear()
