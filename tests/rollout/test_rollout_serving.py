"""The endpoint over an engine without a model: formats, errors, streams, and what happens when something fails."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse, ServerDisconnectedError, web
from aiohttp.test_utils import TestClient, TestServer
from fake_engine import FakeEngine

from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rollout.outputs import CompletionOutput
from deltarl.rollout.serving.answers import settled
from deltarl.rollout.serving.app import ServedModel, Server

TOKENIZER = byte_tokenizer()
Client = TestClient[Any, Any]


def served(
    check: Callable[[Client], Awaitable[None]],
    engine: FakeEngine | None = None,
    *,
    max_queue: int = 8,
    tokenizer: Any = TOKENIZER,
) -> FakeEngine:
    """Runs `check` against a server of its own."""
    engine = engine or FakeEngine(tokenizer)
    model = ServedModel("tiny", tokenizer, max_model_len=64, vocab_size=259, eos_token_ids=(2,))

    async def run() -> None:
        app = Server(engine, model, max_queue=max_queue).app()
        async with asyncio.timeout(30), TestClient(TestServer(app)) as client:
            await check(client)

    asyncio.run(run())
    return engine


async def ask(client: Client, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


async def events(response: ClientResponse) -> list[dict[str, Any]]:
    """The messages of a stream, which must end with [DONE]."""
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    lines = [line for line in (await response.text()).split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(messages: list[dict[str, Any]]) -> dict[int, str]:
    """The text of every choice of a stream."""
    texts: dict[int, str] = {}
    for choice in (c for m in messages for c in m["choices"]):
        piece = choice["text"] if "text" in choice else choice["delta"]["content"]
        texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return texts


def test_completion():
    async def check(client: Client) -> None:
        answer = await ask(client, {"model": "tiny", "prompt": "abc", "max_tokens": 5})
        assert answer["object"] == "text_completion"
        assert answer["model"] == "tiny"
        assert answer["choices"] == [
            {"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        ]
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

    served(check)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["aba", "aba"]),
        (["ab", "c"], ["aba", "aba", "ccc", "ccc"]),
        (TOKENIZER.encode("ab"), ["aba", "aba"]),
        ([TOKENIZER.encode("ab"), TOKENIZER.encode("c")], ["aba", "aba", "ccc", "ccc"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_of_every_kind(prompt: Any, texts: list[str], stream: bool):
    async def check(client: Client) -> None:
        body = {"prompt": prompt, "max_tokens": 3, "n": 2, "stream": stream}
        response = await client.post("/v1/completions", json=body)
        if stream:
            got = joined(await events(response))
        else:
            got = {c["index"]: c["text"] for c in (await response.json())["choices"]}
        assert got == dict(enumerate(texts))

    served(check)


def test_sampling_fields_reach_the_engine():
    async def check(client: Client) -> None:
        fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1, "seed": 5}
        fields |= {"frequency_penalty": -1, "repetition_penalty": 1.5, "n": 2, "max_tokens": 9, "min_tokens": 2}
        await ask(client, {**fields, "prompt": "a", "stop": "x", "logit_bias": {"65": -100}, "logprobs": 3})
        await ask(client, {"prompt": "a", "ignore_eos": True, "temperature": None, "user": "me", "foo": 1})
        await ask(client, {"prompt": "a"})

    first, second, third = served(check).seen
    assert (first.temperature, first.top_p, first.top_k, first.min_p, first.seed) == (0.5, 0.9, 7, 0.1, 5)
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (1, -1, 1.5)
    assert (first.n, first.max_tokens, first.min_tokens, first.logprobs) == (2, 9, 2, 3)
    assert (first.stop, first.stop_token_ids, first.logit_bias) == (("x",), (2,), {65: -100.0})
    assert (second.stop_token_ids, second.temperature, second.max_tokens) == ((), 1.0, 16)
    assert second.seed != third.seed  # nobody asked for one


def test_chat():
    async def check(client: Client) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 4}
        answer = await ask(client, body, "/v1/chat/completions")
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hi\nh"}
        parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "stream": True}
        messages = await events(await client.post("/v1/chat/completions", json=body))
        assert {m["object"] for m in messages} == {"chat.completion.chunk"}
        assert messages[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert messages[-1]["choices"][0]["finish_reason"] == "length"
        assert joined(messages) == {0: "hi\nh"}
        assert len({m["id"] for m in messages}) == 1

    served(check)


def test_chat_goes_to_the_end_of_the_context_unless_told_otherwise():
    async def check(client: Client) -> None:
        await ask(client, {"messages": [{"role": "user", "content": "hi"}]}, "/v1/chat/completions")

    assert served(check).seen[0].max_tokens == 64 - len("hi\n")


def test_stream_ends_with_usage_if_asked():
    async def check(client: Client) -> None:
        body = {"prompt": "abc", "max_tokens": 5, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
        *pieces, last = await events(await client.post("/v1/completions", json=body))
        assert all(piece["usage"] is None for piece in pieces)
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}

    served(check)


def test_stream_comes_in_pieces():
    async def check(client: Client) -> None:
        body = {"prompt": "abc", "max_tokens": 20, "stream": True}
        messages = await events(await client.post("/v1/completions", json=body))
        assert len(messages) > 5
        assert joined(messages) == {0: "abcabcabcabcabcabcab"}

    served(check, FakeEngine(TOKENIZER, step_seconds=0.01))


def test_stream_never_shows_the_beginning_of_a_stop_string_or_half_a_character():
    async def check(client: Client) -> None:
        body = {"prompt": "aé STOP", "max_tokens": 20, "stream": True, "stop": ["STOP"]}
        messages = await events(await client.post("/v1/completions", json=body))
        texts = [c["text"] for m in messages for c in m["choices"]]
        assert "".join(texts) == "aé "
        assert not any("\N{REPLACEMENT CHARACTER}" in text or "S" in text for text in texts)
        choice = messages[-1]["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "STOP")

    served(check, FakeEngine(TOKENIZER, step_seconds=0.01))


@pytest.mark.parametrize(
    ("text", "finished", "want"),
    [
        ("a ST", False, "a "),
        ("a ST", True, "a ST"),
        ("a S x", False, "a S x"),
        ("é\ufffd", False, "é"),
        ("", False, ""),
    ],
)
def test_settled(text: str, finished: bool, want: str):
    output = CompletionOutput(0, [], [], [], [], "length" if finished else None, text=text)
    assert settled(output, ("STOP", "T!")) == want


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool):
    async def check(client: Client) -> None:
        body = {"prompt": "ab", "max_tokens": 3, "logprobs": 1, "stream": stream}
        response = await client.post("/v1/completions", json=body)
        messages = await events(response) if stream else [await response.json()]
        entries = [c["logprobs"] for m in messages for c in m["choices"]]
        assert [x for e in entries for x in e["tokens"]] == ["a", "b", "a"]
        assert [x for e in entries for x in e["token_logprobs"]] == [-0.5] * 3
        assert [x for e in entries for x in e["text_offset"]] == [0, 1, 2]
        assert [x for e in entries for x in e["top_logprobs"]][1] == {"b": -0.5, "!": -2.0}
        chat = {"messages": [{"role": "user", "content": "é"}], "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
        response = await client.post("/v1/chat/completions", json={**chat, "stream": stream})
        messages = await events(response) if stream else [await response.json()]
        content = [e for m in messages for c in m["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
        assert [e["bytes"] for e in content] == [None, None, [10]]
        assert content[0]["token"] == f"token_id:{TOKENIZER.encode('é')[0]}"
        assert [t["token"] for t in content[2]["top_logprobs"]] == ["\n", "!"]

    served(check)


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        (COMPLETIONS, {}, 422, "prompt", ["prompt", "required"]),
        (COMPLETIONS, {"prompt": ""}, 400, "prompt", ["empty"]),
        (COMPLETIONS, {"prompt": []}, 422, "prompt", ["prompt"]),
        (COMPLETIONS, {"prompt": [300]}, 400, "prompt", ["300", "258"]),
        (COMPLETIONS, {"prompt": "a" * 64}, 400, "prompt", ["64 tokens", "shorten", "--max-model-len"]),
        (COMPLETIONS, {"prompt": ["a"] * 9}, 400, "prompt", ["9 prompts", "several requests"]),
        (COMPLETIONS, {"prompt": "a", "model": "gpt-4"}, 404, "model", ["gpt-4", "tiny"]),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, 422, "temperature", ["-1", "greater"]),
        (COMPLETIONS, {"prompt": "a", "top_p": 2}, 422, "top_p", ["2"]),
        (COMPLETIONS, {"prompt": "a", "n": 1000}, 422, "n", ["1000"]),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 4, "min_tokens": 5}, 400, None, ["min_tokens", "5"]),
        (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo", ["not supported", "before the answer"]),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, 400, "best_of", ["3"]),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"666": 1}}, 400, None, ["666"]),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"666": 1}, "stream": True}, 400, None, ["666"]),
        (CHAT, {"messages": []}, 422, "messages", ["messages"]),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", ["tools"]),
        (
            CHAT,
            {"messages": HELLO, "chat_template_kwargs": {"chat_template": "x"}},
            400,
            "chat_template_kwargs",
            ["leave"],
        ),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format", ["format"]),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422, "messages", ["text"]),
    ],
)
def test_bad_requests(path: str, body: dict[str, Any], status: int, param: str | None, words: list[str]):
    async def check(client: Client) -> None:
        response = await client.post(path, json=body)
        error = (await response.json())["error"]
        assert response.status == status, error
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert all(word in error["message"] for word in words), error
        await ask(client, {"prompt": "still there"})

    served(check)


def test_requests_that_are_none():
    async def check(client: Client) -> None:
        for status, response in (
            (400, await client.post(COMPLETIONS, data=b"{")),
            (422, await client.post(COMPLETIONS, json=[1])),
            (404, await client.post("/v1/nothing", json={})),
            (405, await client.get(COMPLETIONS)),
            (413, await client.post(COMPLETIONS, data=b" " * (17 * 2**20))),
        ):
            assert response.status == status
            assert (await response.json())["error"]["message"]

    served(check)


def test_checkpoint_without_a_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None

    async def check(client: Client) -> None:
        response = await client.post(CHAT, json={"messages": HELLO})
        assert response.status == 400
        assert "chat template" in (await response.json())["error"]["message"]

    served(check, tokenizer=tokenizer)


def test_full_queue_is_429_and_gets_empty_again():
    async def check(client: Client) -> None:
        body = {"prompt": "a", "max_tokens": 30}
        responses = await asyncio.gather(*(client.post(COMPLETIONS, json=body) for _ in range(5)))
        assert sorted(r.status for r in responses) == [200, 200, 429, 429, 429]
        refused = next(r for r in responses if r.status == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await refused.json())["error"]["code"] == "queue_full"
        await ask(client, {"prompt": ["a", "b"]})

    served(check, FakeEngine(TOKENIZER, step_seconds=0.01), max_queue=2)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_aborts(stream: bool):
    async def check(client: Client) -> None:
        async def request() -> None:
            response = await client.post(
                COMPLETIONS, json={"prompt": ["a", "b"], "max_tokens": 10**6, "stream": stream}
            )
            await response.text()

        task = asyncio.create_task(request())
        while (await (await client.get("/health")).json())["running"] != 2:
            await asyncio.sleep(0.01)
        task.cancel()
        while (health := await (await client.get("/health")).json())["running"] or health["open_requests"]:
            await asyncio.sleep(0.01)
        while 'path="/v1/completions",status="499"} 1.0' not in await (await client.get("/metrics")).text():
            await asyncio.sleep(0.01)

    assert len(served(check, FakeEngine(TOKENIZER, step_seconds=0.005)).aborted) == 2


def test_disconnect_at_any_moment_is_no_error():
    body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": True})
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"

    async def check(client: Client) -> None:
        for i in range(100):
            _, writer = await asyncio.open_connection(client.server.host, client.server.port)
            writer.write(f"{head}\r\n\r\n{body}".encode())
            await asyncio.sleep(i * 1e-4)
            writer.transport.abort()
        while (await (await client.get("/health")).json())["open_requests"]:
            await asyncio.sleep(0.01)
        assert 'status="5' not in await (await client.get("/metrics")).text()

    served(check, FakeEngine(TOKENIZER, step_seconds=0.001))


def test_client_gone_before_the_stream_begins(monkeypatch: pytest.MonkeyPatch):
    prepare = web.StreamResponse.prepare

    async def gone(self: web.StreamResponse, request: web.BaseRequest) -> Any:
        if self.content_type == "text/event-stream":
            raise ConnectionResetError
        return await prepare(self, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", gone)

    async def check(client: Client) -> None:
        with pytest.raises(ServerDisconnectedError):
            await client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
        assert 'status="499"' in await (await client.get("/metrics")).text()

    served(check)


def test_engine_failure_fails_everybody_and_shows():
    async def check(client: Client) -> None:
        body = {"prompt": "a", "max_tokens": 100}
        whole, stream = await asyncio.gather(
            client.post(COMPLETIONS, json=body), client.post(COMPLETIONS, json={**body, "stream": True})
        )
        assert whole.status == 500
        assert "out of memory" in (await whole.json())["error"]["message"]
        assert "out of memory" in (await events(stream))[-1]["error"]["message"]
        health = await client.get("/health")
        assert health.status == 503
        assert "out of memory" in (await health.json())["error"]
        later = await client.post(COMPLETIONS, json=body)
        assert later.status == 503
        assert "restart" in (await later.json())["error"]["message"]
        assert "deltarl_up 0.0" in await (await client.get("/metrics")).text()

    served(check, FakeEngine(TOKENIZER, step_seconds=0.02, fail_at=20))


@pytest.mark.parametrize("stream", [False, True])
def test_broken_model_is_an_error_not_an_answer(stream: bool):
    async def check(client: Client) -> None:
        response = await client.post(COMPLETIONS, json={"prompt": "a", "stream": stream})
        error = (await events(response))[-1]["error"] if stream else (await response.json())["error"]
        assert stream or response.status == 500
        assert "not finite" in error["message"]
        assert (await client.get("/health")).status == 200

    served(check, FakeEngine(TOKENIZER, step_seconds=0.02, broken=True))


def test_shutdown_does_not_wait_for_long_answers():
    async def check(client: Client) -> None:
        body = {"prompt": "a", "max_tokens": 10**6}
        task = asyncio.create_task(client.post(COMPLETIONS, json=body))
        while (await (await client.get("/health")).json())["running"] != 1:
            await asyncio.sleep(0.01)
        await client.server.runner.cleanup()  # type: ignore[union-attr]
        response = await task
        assert response.status == 500
        assert "shutting down" in (await response.json())["error"]["message"]

    served(check, FakeEngine(TOKENIZER, step_seconds=0.005))


def test_models_health_metrics():
    async def check(client: Client) -> None:
        card = (await (await client.get("/v1/models")).json())["data"][0]
        assert (card["id"], card["max_model_len"]) == ("tiny", 64)
        await ask(client, {"prompt": "abc", "max_tokens": 5})
        await events(await client.post(COMPLETIONS, json={"prompt": "abc", "stream": True}))
        health = await (await client.get("/health")).json()
        assert health["status"] == "ok"
        metrics = await (await client.get("/metrics")).text()
        for line in (
            "deltarl_up 1.0",
            "deltarl_open_requests 0.0",
            "deltarl_engine_generated_tokens_total 21.0",
            "deltarl_engine_running 0.0",
            'deltarl_http_requests_total{path="/v1/completions",status="200"} 2.0',
            "deltarl_first_token_seconds_count 1.0",
        ):
            assert line in metrics

    served(check)
