"""Stands in for `deltarl.rollout.vllm.server` where vLLM is not installed: the same calls, a made-up model."""

import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from deltarl.rollout.vllm.protocol import receive, reply, serve

HANG, DIE, FAIL, NAN, REFUSE, STALE = 30, 31, 32, 33, 34, 35  # as the first token of a prompt


class WeightMismatchError(RuntimeError):
    """By name the one of `deltarl.model.weights`, which would import torch: seconds for each of these processes."""


class FakeServer:
    """Answers a prompt with its last token again and again; its weights are one number, the score of every token."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.broken = ""

    def generate(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        if self.broken:
            raise WeightMismatchError(self.broken)
        first = prompts[0][0]
        if first == HANG:
            print("a last word", flush=True)
            time.sleep(600)
        if first == DIE:
            print("a last word", flush=True)
            os._exit(7)
        if first == REFUSE:
            raise ValueError("too long")
        if first == FAIL:
            raise KeyError("some bug")
        return [[self._sample(p, f, i) for i in range(f["n"])] for p, f in zip(prompts, params, strict=True)]

    def _sample(self, prompt: list[int], fields: dict[str, Any], i: int) -> dict[str, Any]:
        n = fields["max_tokens"]
        score = {NAN: float("nan"), STALE: self.weight - 0.25}.get(prompt[0], self.weight)
        return {
            "token_ids": [prompt[-1]] * n,
            "logprobs": [score] * n,
            "sampling_logprobs": [score - i] * n,
            "top": [[[prompt[-1]], [score]]] * n,
            "finish_reason": "length",
            "stop_reason": None,
            "text": "",
        }

    def score(self, prompts: list[list[int]]) -> list[list[float]]:
        return [[self.weight] * (len(prompt) - 1) for prompt in prompts]

    def load_weights(self, published: str, arrays: dict[str, Any]) -> None:
        if published == "wrong":
            raise WeightMismatchError("not their published checksum")
        if published == "hang":
            time.sleep(600)
        self.weight = float(arrays["weight"].sum())
        self.broken = ""

    def distrust(self, reason: str) -> None:
        self.broken = reason

    def sleep(self, level: int) -> None:
        if level > 1:
            self.weight = -1.0

    def wake_up(self) -> None:
        pass


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    start, _ = receive(pipe)
    options = start["with"]["options"]

    def begin() -> dict[str, Any]:
        if options.get("fail") == "missing":
            raise ModuleNotFoundError("No module named 'vllm'")
        if options.get("fail") == "config":
            raise ValueError("no such model")
        if options.get("fail") == "hang":
            time.sleep(60)
        return {"max_model_len": 16, "vocab_size": 37, "has_tokenizer": False}

    reply(pipe, begin)
    server = FakeServer()
    names = ("generate", "score", "load_weights", "distrust", "sleep", "wake_up")
    serve(pipe, {name: getattr(server, name) for name in names}, (ValueError, WeightMismatchError))


if __name__ == "__main__":
    main()
