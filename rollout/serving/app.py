"""The HTTP endpoint, with the paths and formats of OpenAI's API."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

from aiohttp import web
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from deltarl.rollout.params import SamplingParams
from deltarl.rollout.serving.answers import AnswerFormat, ChatFormat, CompletionFormat
from deltarl.rollout.serving.errors import ApiError, bad_request, invalid
from deltarl.rollout.serving.loop import EngineDeadError, EngineLoop, QueueFullError, ServedEngine, Ticket
from deltarl.rollout.serving.metrics import Metrics
from deltarl.rollout.serving.protocol import ChatRequest, CompletionRequest, SamplingRequest
from deltarl.rollout.serving.stream import CLIENT_GONE, STATUS, EventStream, updates

log = logging.getLogger(__name__)

MAX_BODY = 16 * 2**20
RETRY_AFTER = 1  # seconds: decoding frees places all the time
_Request = TypeVar("_Request", bound=SamplingRequest)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ServedModel:
    """What is served.

    Attributes:
        name: what requests call it.
        tokenizer: the checkpoint's, with or without a chat template.
        max_model_len: most tokens of prompt and answer together.
        vocab_size: of the model.
        eos_token_ids: end every answer, unless a request says `ignore_eos`.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class Server:
    """The handlers, around one engine."""

    def __init__(self, engine: ServedEngine, model: ServedModel, *, max_queue: int):
        self.model = model
        self.loop = EngineLoop(engine, max_queue)
        self.metrics = Metrics(self.loop)
        self.started = int(time.time())

    def app(self) -> web.Application:
        """To be run with `handler_cancellation=True`, so that a client that goes away ends its requests."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._observe, self._explain])
        app.add_routes(
            [
                web.post("/v1/completions", self.completions),
                web.post("/v1/chat/completions", self.chat_completions),
                web.get("/v1/models", self.models),
                web.get("/health", self.health),
                web.get("/metrics", self.prometheus),
            ]
        )

        async def start(app: web.Application) -> None:
            self.loop.start()

        async def stop(app: web.Application) -> None:
            await self.loop.close()

        app.on_startup.append(start)
        app.on_shutdown.append(stop)  # before aiohttp waits for open requests, so that they end now
        return app

    # ------------------------------------------------------------------------------------------------- handlers

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        body = await self._body(request, CompletionRequest)
        prompts = [self.model.tokenizer.encode(p) if isinstance(p, str) else p for p in body.prompts()]
        form = CompletionFormat(self.model.name, self.model.tokenizer, body.logprobs is not None)
        return await self._answer(request, body, prompts, "prompt", form, default_max_tokens=16)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await self._body(request, ChatRequest)
        prompt = body.prompt_ids(self.model.tokenizer)
        form = ChatFormat(self.model.name, self.model.tokenizer, body.logprobs)
        room = max(1, self.model.max_model_len - len(prompt))
        return await self._answer(request, body, [prompt], "messages", form, default_max_tokens=room)

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        card = {
            "id": self.model.name,
            "object": "model",
            "created": self.started,
            "owned_by": "deltarl",
            "max_model_len": self.model.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def health(self, request: web.Request) -> web.Response:
        """GET /health: 200 while the engine works, else 503 with what ended it."""
        if self.loop.error is not None:
            error = f"{type(self.loop.error).__name__}: {self.loop.error}"
            return web.json_response({"status": "error", "error": error}, status=503)
        return web.json_response({"status": "ok", "open_requests": self.loop.open_requests, **asdict(self.loop.stats)})

    async def prometheus(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    # ------------------------------------------------------------------------------------------------- requests

    async def _body(self, request: web.Request, kind: type[_Request]) -> _Request:
        try:
            body = kind.model_validate_json(await request.read())
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                raise bad_request(f"the body is not JSON: {error.errors()[0]['msg']}") from error
            raise invalid(error) from error
        if body.model not in (None, self.model.name):
            raise ApiError(
                404,
                f"model = {body.model!r} is not served here; it is {self.model.name!r}, or leave the field out",
                param="model",
                code="model_not_found",
            )
        return body

    async def _answer(
        self,
        request: web.Request,
        body: SamplingRequest,
        prompts: Sequence[Sequence[int]],
        param: str,
        form: AnswerFormat,
        default_max_tokens: int,
    ) -> web.StreamResponse:
        began = time.monotonic()
        for prompt in prompts:
            self._check_prompt(prompt, param)
        if len(prompts) > self.loop.max_queue:
            raise bad_request(
                f"{param} has {len(prompts)} prompts and the server takes {self.loop.max_queue} at once: "
                "send them in several requests",
                param,
            )
        params = body.sampling_params(self.model.eos_token_ids, default_max_tokens)
        async with self._submitted(prompts, params, body.stream) as tickets:
            if body.stream:
                stream = EventStream(form, tickets, body.stream_options.include_usage)
                stream.on_first_text = lambda: self.metrics.first_token_seconds.observe(time.monotonic() - began)
                return await stream.answer(request)
            outputs = [output for ticket in tickets async for output in updates(ticket)]
        choices = [
            form.choice(i * params.n + sample.index, sample, sample.text or "")
            for i, output in enumerate(outputs)
            for sample in output.outputs
        ]
        return web.json_response(form.whole(choices, outputs))

    def _check_prompt(self, prompt: Sequence[int], param: str) -> None:
        limit, vocab = self.model.max_model_len, self.model.vocab_size
        if not prompt:
            raise bad_request(f"{param} is empty; it needs at least one token", param)
        if len(prompt) >= limit:
            raise bad_request(
                f"{param} has {len(prompt)} tokens and the model's context is {limit}, with at least one for the "
                "answer: shorten it, or start the server with a larger --max-model-len",
                param,
                "context_length_exceeded",
            )
        outside = [token for token in prompt if not 0 <= token < vocab]
        if outside:
            raise bad_request(f"{param} has token id {outside[0]}, outside the vocabulary 0..{vocab - 1}", param)

    @asynccontextmanager
    async def _submitted(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, stream: bool
    ) -> AsyncIterator[list[Ticket]]:
        """Queues all prompts or none, and ends those still open when the handler is done with them or cancelled."""
        async with AsyncExitStack() as stack:
            try:
                self.loop.check_room(len(prompts))
                tickets = [self.loop.submit(prompt, params, stream) for prompt in prompts]
            except QueueFullError as error:
                raise ApiError(429, f"{error}: ask again later", code="queue_full", retry_after=RETRY_AFTER) from error
            except EngineDeadError as error:
                message = f"the engine is down ({error}): look into the server's log, and restart it"
                raise ApiError(503, message, code="engine_down") from error
            for ticket in tickets:
                stack.callback(self.loop.release, ticket)
            yield tickets

    # ---------------------------------------------------------------------------------------------- middlewares

    @web.middleware
    async def _observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts requests and their seconds, by the path of the route, of which there are few."""
        began = time.monotonic()
        route = request.match_info.route.resource
        path = route.canonical if route is not None else "other"
        status = CLIENT_GONE  # unless something comes of it
        try:
            response = await handler(request)
            status = request.get(STATUS, response.status)
            return response
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)

    @web.middleware
    async def _explain(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Gives every error the form of OpenAI's."""
        try:
            return await handler(request)
        except ApiError as error:
            answer = error
        except web.HTTPException as error:
            answer = ApiError(error.status, f"{request.method} {request.path}: {error.reason}")
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            answer = ApiError(500, "the server failed at this request; its log says why")
        headers = {} if answer.retry_after is None else {"Retry-After": str(answer.retry_after)}
        return web.json_response(answer.body(), status=answer.status, headers=headers)
