"""`deltarl-serve` as a user starts it: a process, a checkpoint, and requests over a socket."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarl.model.checkpoint import save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.serve import eos_token_ids, main

TOKENIZER = byte_tokenizer()


def tiny_model() -> HybridForCausalLM:
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        linear_num_heads=2,
        linear_head_dim=8,
        intermediate_size=48,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=20000,
        full_attention_every=2,
        initializer_range=0.2,
    )
    return HybridForCausalLM(config).eval()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of its own process."""
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    save_model(tiny_model(), folder)
    TOKENIZER.save_pretrained(folder)
    command = [sys.executable, "-m", "deltarl.rollout.serve", str(folder), "--port", "0", "--max-num-seqs", "4"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    address = next(word for line in lines for word in line.split() if word.startswith("http://"))
    yield address
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


def post(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def health(server: str) -> dict[str, Any]:
    return json.loads(get(f"{server}/health"))


def test_answers_are_the_engines(server: str):
    body = {"model": "tiny", "prompt": "12+34=", "max_tokens": 20, "n": 3, "seed": 7, "logprobs": 0, "ignore_eos": True}
    answer = json.loads(post(f"{server}/v1/completions", body))
    params = SamplingParams(n=3, max_tokens=20, seed=7, logprobs=0)
    [want] = Engine(tiny_model(), tokenizer=TOKENIZER).generate([TOKENIZER.encode("12+34=")], params)
    for choice, sample in zip(answer["choices"], want.outputs, strict=True):
        assert choice["text"] == sample.text
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(sample.logprobs, abs=1e-5)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 60, "total_tokens": 66}
    stream = post(f"{server}/v1/completions", {**body, "stream": True})
    texts, logprobs = {0: "", 1: "", 2: ""}, {0: [], 1: [], 2: []}
    for line in stream.strip().split("\n\n")[:-1]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
            logprobs[choice["index"]] += choice["logprobs"]["token_logprobs"]
    assert list(texts.values()) == [sample.text for sample in want.outputs]
    assert list(logprobs.values()) == [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]


def test_chat_with_a_stop_string(server: str):
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 30}
    whole = json.loads(post(f"{server}/v1/chat/completions", body))["choices"][0]
    text = whole["message"]["content"]
    stop = text[3:5]
    choice = json.loads(post(f"{server}/v1/chat/completions", {**body, "stop": stop}))["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_disconnect_frees_the_engine(server: str):
    connection = HTTPConnection(server.removeprefix("http://"), timeout=60)
    body = {"prompt": "a", "n": 4, "max_tokens": 19000, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    assert health(server)["running"] == 4
    response.close()
    connection.close()
    deadline = time.monotonic() + 30
    while (now := health(server))["running"] or now["open_requests"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    assert now["free_pages"] == now["total_pages"]


def test_over_long_prompt_and_metrics(server: str):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{server}/v1/completions", {"prompt": "a" * 20000})
    assert refused.value.code == 400
    assert json.loads(refused.value.read())["error"]["code"] == "context_length_exceeded"
    metrics = get(f"{server}/metrics")
    assert "deltarl_up 1.0" in metrics
    assert "deltarl_engine_generated_tokens_total" in metrics


def test_bad_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "config.json" in message


def test_eos_token_ids():
    assert eos_token_ids(None, 2) == (2,)
    assert eos_token_ids([5, 2], 2) == (5, 2)
