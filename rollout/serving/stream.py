"""From tickets to what a client reads: the updates of a request, and server-sent events made of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from aiohttp import web

from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.serving.answers import AnswerFormat, Piecewise, usage
from deltarl.rollout.serving.errors import ApiError, bad_request
from deltarl.rollout.serving.loop import EngineDeadError, Ticket

CLIENT_GONE = 499  # for the metrics; nobody is there to see it
STATUS = web.RequestKey("status", int)  # what came of a request, where the response does not say it


async def updates(ticket: Ticket) -> AsyncIterator[RequestOutput]:
    """`ticket.updates()`, with what goes wrong as the client is told of it."""
    try:
        async for output in ticket.updates():
            for sample in output.outputs:
                if sample.finish_reason == "error":
                    message = f"no answer: {sample.stop_reason}; the checkpoint may be damaged"
                    raise ApiError(500, message, code="model_failed")
            yield output
    except ValueError as error:
        raise bad_request(str(error)) from error
    except EngineDeadError as error:
        raise ApiError(500, f"the engine failed at this request: {error}", code="engine_failed") from error


class EventStream:
    """The answers to one request as server-sent events, the pieces of all its prompts and samples mixed."""

    def __init__(self, form: AnswerFormat, tickets: Sequence[Ticket], with_usage: bool):
        """
        Args:
            with_usage: end with the counts of tokens.
        """
        self.on_first_text: Callable[[], None] | None = None
        self._form, self._tickets, self._with_usage = form, tickets, with_usage
        self._updates = [updates(ticket) for ticket in tickets]
        self._last: list[RequestOutput] = []
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """
        Raises:
            ApiError: before anything was sent. Afterwards an error is an event: the status is gone, and clients look
                for that.
        """
        # The engine may refuse a request, which is known with its first update.
        self._last = [await anext(u) for u in self._updates]
        try:
            await self._response.prepare(request)
            try:
                async with asyncio.TaskGroup() as group:
                    for i in range(len(self._tickets)):
                        group.create_task(self._follow(i))
                if self._with_usage:
                    await self._send(self._form.piece([], usage(self._last)))
            except* ApiError as errors:
                await self._send(_first(errors).body())
            await self._response.write(b"data: [DONE]\n\n")
            await self._response.write_eof()
        except* ConnectionResetError:
            request[STATUS] = CLIENT_GONE
        return self._response

    async def _follow(self, i: int) -> None:
        params = self._tickets[i].params
        pieces = Piecewise(self._form, i * params.n, params.n, params.stop)
        for choice in pieces.opening():
            await self._send(self._form.piece([choice]))
        await self._send_new(pieces, self._last[i])
        async for output in self._updates[i]:
            self._last[i] = output
            await self._send_new(pieces, output)

    async def _send_new(self, pieces: Piecewise, output: RequestOutput) -> None:
        if choices := pieces.choices(output):
            if self.on_first_text is not None:
                self.on_first_text()
                self.on_first_text = None
            await self._send(self._form.piece(choices))

    async def _send(self, message: dict[str, Any]) -> None:
        await self._response.write(f"data: {json.dumps(message)}\n\n".encode())


def _first(errors: BaseExceptionGroup[ApiError]) -> ApiError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ApiError)
    return error
