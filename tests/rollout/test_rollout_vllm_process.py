"""The vLLM backend's own half: mapping, protocol, faults. vLLM's place is taken by vllm_fake_server.py."""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm_fake_server import DIE, FAIL, HANG, NAN, REFUSE, STALE

from deltarl.model.weights import WeightMismatchError, WeightUpdate, checksum
from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.vllm import backend, live, protocol, requirements
from deltarl.rollout.vllm.backend import Probe, VLLMEngine, vllm_fields
from deltarl.rollout.vllm.process import VLLMError


def fake_engine(**options: Any) -> VLLMEngine:
    return VLLMEngine("some-model", python=sys.executable, **options)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "SERVER", (str(Path(__file__).with_name("vllm_fake_server.py")),))


@pytest.fixture
def engine() -> Iterator[VLLMEngine]:
    with fake_engine() as engine:
        yield engine


def update(version: int, value: float) -> WeightUpdate:
    arrays = {"weight": np.full(3, value / 3, np.float32)}
    return WeightUpdate(version, checksum(arrays), arrays)


def test_answers_are_mapped_in_order_and_carry_the_weight_version(engine: VLLMEngine) -> None:
    engine.load_weights(update(4, -3.0))
    outputs = engine.generate([[3, 4], [5]], [SamplingParams(n=2, max_tokens=3, logprobs=1), SamplingParams()])
    assert [(r.request_id, r.prompt_token_ids, len(r.outputs)) for r in outputs] == [("0", [3, 4], 2), ("1", [5], 1)]
    first, second = outputs[0].outputs
    assert first.token_ids == [4, 4, 4]
    assert first.weight_versions == [4, 4, 4]
    assert first.logprobs == pytest.approx([-3.0] * 3)
    assert second.sampling_logprobs == pytest.approx([-4.0] * 3)
    assert first.top_logprobs is not None
    assert first.top_logprobs[0].keys() == {4}
    assert (second.index, second.finish_reason, second.text) == (1, "length", None)
    assert outputs[1].outputs[0].top_logprobs is None
    greedy = engine.generate([[5]], SamplingParams(temperature=0.0, max_tokens=2))[0].outputs[0]
    assert greedy.sampling_logprobs == [0.0, 0.0]  # as the native engine: the token was certain


def test_logits_that_are_not_finite_are_an_error_of_that_sample(engine: VLLMEngine) -> None:
    bad, good = (r.outputs[0] for r in engine.generate([[NAN], [5]], SamplingParams()))
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert "finite" in str(bad.stop_reason)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([37], "outside the vocabulary"), ([3] * 16, "no room for an answer")],
)
def test_bad_prompts_are_refused_at_the_door(engine: VLLMEngine, prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.generate([[3], prompt], SamplingParams())


def test_params_become_vllm_fields_that_json_can_hold() -> None:
    params = SamplingParams(
        n=2,
        logit_bias={3: 1.5},
        stop=("\n",),
        stop_token_ids=(2,),
        repetition_detection=RepetitionDetection(8),
        seed=7,
    )
    fields = vllm_fields(params, vocab_size=37, has_tokenizer=True)
    assert fields.keys() == {field.name for field in dataclasses.fields(SamplingParams)}
    assert json.loads(json.dumps(fields)) == fields | {"logit_bias": [[3, 1.5]]}
    assert fields["repetition_detection"] == {"max_pattern_size": 8, "min_pattern_size": 1, "min_count": 4}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(stop=("a",)), "tokenizer"),
        (SamplingParams(temperature=0.001), "temperature"),
        (SamplingParams(stop_token_ids=(40,)), "token 40"),
        (SamplingParams(logit_bias={-1: 1.0}), "token -1"),
    ],
)
def test_what_vllm_cannot_honour_is_refused(params: SamplingParams, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vllm_fields(params, vocab_size=37, has_tokenizer=False)


def test_a_wrong_checksum_is_refused_and_the_old_weights_stay(engine: VLLMEngine) -> None:
    engine.load_weights(update(1, -2.0))
    with pytest.raises(WeightMismatchError, match="checksum"):
        engine.load_weights(dataclasses.replace(update(2, -3.0), checksum="wrong"))
    assert engine.weight_version == 1
    assert engine.score([[3, 4]])[0] == pytest.approx([-2.0])


def test_a_failed_probe_stops_sampling_until_the_next_good_update(engine: VLLMEngine) -> None:
    with pytest.raises(WeightMismatchError, match="differ from the publisher's"):
        engine.load_weights(update(1, -2.0), Probe([[3, 4, 5]], [[-2.0, -2.5]]))
    with pytest.raises(WeightMismatchError, match="failed their probe"):
        engine.generate([[3]], SamplingParams())
    engine.load_weights(update(2, -1.0), Probe([[3, 4]], [[-1.0]]))
    assert engine.generate([[3]], SamplingParams())[0].outputs[0].weight_versions[0] == 2


def test_a_probe_looks_at_decoding_too(engine: VLLMEngine) -> None:
    with pytest.raises(WeightMismatchError, match=r"decoding differs from prefill by 0\.25"):
        engine.load_weights(update(1, -2.0), Probe([[STALE, 4]], [[-2.0]]))


def test_a_probe_never_passes_on_nan() -> None:
    assert Probe([[3, 4]], [[-1.0]]).largest_gap([[math.nan]]) == math.inf


def test_a_process_that_dies_is_reported_and_a_restart_has_the_last_weights(engine: VLLMEngine) -> None:
    engine.load_weights(update(5, -6.0))
    with pytest.raises(VLLMError, match=r"(?s)exit code 7.*a last word.*restart"):
        engine.generate([[DIE]], SamplingParams())
    with pytest.raises(VLLMError, match="restart"):
        engine.generate([[3]], SamplingParams())
    assert not engine.alive
    engine.restart()
    answer = engine.generate([[3]], SamplingParams(max_tokens=1))[0].outputs[0]
    assert (answer.weight_versions, answer.logprobs) == ([5], pytest.approx([-6.0]))


def test_a_killed_process_is_noticed_while_it_is_waited_for(engine: VLLMEngine) -> None:
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(VLLMError, match="signal 9"):
        engine.generate([[3]], SamplingParams())


def test_a_process_that_hangs_is_killed_and_named_whatever_it_was_asked() -> None:
    with fake_engine(call_timeout=3.0) as engine:
        hangs = {
            "generate": lambda: engine.generate([[HANG]], SamplingParams()),
            "load_weights": lambda: engine.load_weights(dataclasses.replace(update(2, -1.0), checksum="hang")),
        }
        engine.load_weights(update(1, -6.0))
        for name, call in hangs.items():
            pid, began = engine._process.pid, time.monotonic()
            killed = rf"(?s)process {pid} gave no answer to '{name}' in 3 s and was killed.*restart"
            with pytest.raises(VLLMError, match=killed):
                call()
            assert time.monotonic() - began < 30
            with pytest.raises(VLLMError, match="signal 9"):
                engine.generate([[3]], SamplingParams())
            engine.restart()
            answer = engine.generate([[3]], SamplingParams(max_tokens=1))[0].outputs[0]
            assert (answer.weight_versions, answer.logprobs) == ([1], pytest.approx([-6.0]))


def test_a_process_that_does_not_even_read_is_killed() -> None:
    with fake_engine(call_timeout=3.0) as engine:
        os.kill(engine._process.pid, signal.SIGSTOP)
        arrays = {"weight": np.zeros(10_000_000, np.float32)}  # more than the pipe holds
        with pytest.raises(VLLMError, match="gave no answer to 'load_weights' in 3 s and was killed"):
            engine.load_weights(WeightUpdate(1, checksum(arrays), arrays))
        assert not engine.alive


def test_an_unforeseen_error_ends_the_process_but_a_refusal_does_not(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="too long"):
        engine.generate([[REFUSE]], SamplingParams())
    assert engine.generate([[3]], SamplingParams())[0].finished
    with pytest.raises(VLLMError, match=r"(?s)KeyError: 'some bug'.*restart"):
        engine.generate([[FAIL]], SamplingParams())
    with pytest.raises(VLLMError, match="exit code 1"):
        engine.generate([[3]], SamplingParams())


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.connection.Connection.poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[3]], SamplingParams())
    with pytest.raises(VLLMError, match="restart"):
        engine.generate([[4]], SamplingParams())
    engine.restart()
    assert engine.generate([[4]], SamplingParams(max_tokens=1))[0].outputs[0].token_ids == [4]


def test_sleep_refuses_work_and_waking_up_loads_dropped_weights(engine: VLLMEngine) -> None:
    engine.load_weights(update(1, -2.0))
    engine.sleep(level=2)
    with pytest.raises(ValueError, match="wake_up"):
        engine.generate([[3]], SamplingParams())
    engine.wake_up()
    assert engine.score([[3, 4]])[0] == pytest.approx([-2.0])


def test_start_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.INTERPRETER, raising=False)
    with pytest.raises(VLLMError, match=r"DELTARL_VLLM_PYTHON.*docs/VLLM\.md"):
        VLLMEngine("some-model")
    with pytest.raises(VLLMError, match="cannot run /nowhere/python"):
        VLLMEngine("some-model", python="/nowhere/python")
    with pytest.raises(VLLMError, match=r"cannot import vLLM.*docs/VLLM\.md"):
        fake_engine(fail="missing")
    with pytest.raises(ValueError, match="no such model"):
        fake_engine(fail="config")
    with pytest.raises(VLLMError, match=r"process \d+ gave no answer to 'start' in 1 s and was killed"):
        fake_engine(fail="hang", start_timeout=1.0)


def test_the_process_ends_with_its_owner() -> None:
    engine = fake_engine()
    pid = engine._process.pid
    del engine  # hangs up
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.05)
    assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    os.waitpid(pid, 0)


def test_messages_keep_arrays_to_the_bit() -> None:
    ours, theirs = Pipe()
    arrays = {"a": np.float32([[1.5, -0.0], [np.nan, np.inf]]), "b": np.arange(4, dtype=np.int16).reshape(2, 2).T}
    protocol.send(ours, {"x": [1, None, "é"]}, arrays)
    message, got = protocol.receive(theirs)
    assert message == {"x": [1, None, "é"]}
    assert checksum(got) == checksum(arrays)


def test_the_element_digest_sees_every_change_and_no_move() -> None:
    a, b = torch.randn(4, 6), torch.randn(3, 6)
    digest = live.element_digest([a, b])
    joined = torch.nn.functional.pad(torch.cat([b, a]), (0, 2)).t()
    assert live.element_digest([joined]) == digest
    assert live.element_digest([a.bfloat16().float(), b]) != digest
    for row, column in ((0, 0), (3, 5)):
        changed = a.clone()
        changed[row, column] = torch.nextafter(changed[row, column], torch.tensor(9.0))
        assert live.element_digest([changed, b]) != digest
    assert live.element_digest([a, a]) != live.element_digest([a, b])
    assert live.element_digest([a.bfloat16()]) == live.element_digest([a.bfloat16().float()])


def test_updates_must_have_the_checkpoints_names_and_shapes() -> None:
    expected = {"model.embed_tokens.weight": (4, 2), "x": (3,)}
    tensors = {"model.embed_tokens.weight": torch.ones(4, 2), "x": torch.ones(3)}
    live.check_names(tensors, expected)
    with pytest.raises(WeightMismatchError, match=r"differ in x .*checkpoint_update"):
        live.check_names({"model.embed_tokens.weight": torch.ones(4, 2)}, expected)
    with pytest.raises(WeightMismatchError, match="x: got shape"):
        live.check_names(tensors | {"x": torch.ones(2)}, expected)


def test_a_tied_output_layer_may_be_sent_but_must_be_the_embeddings() -> None:
    class Config:
        tie_word_embeddings = True

    expected = {"model.embed_tokens.weight": (4, 2)}
    tensors = {"model.embed_tokens.weight": torch.ones(4, 2), "lm_head.weight": torch.ones(4, 2)}
    assert live.without_tied_copy(tensors, expected, Config()).keys() == expected.keys()
    with pytest.raises(WeightMismatchError, match="ties lm_head"):
        live.without_tied_copy(tensors | {"lm_head.weight": torch.zeros(4, 2)}, expected, Config())


def test_what_breaks_a_cpu_torch_is_left_out_of_the_requirements() -> None:
    lines = ["torch==2.13.0", "torchvision; platform_machine != 'x'", "numpy>=2", "ray[default]", 'x; extra == "y"']
    assert requirements.requirements(lines) == ["numpy>=2", "ray[default]"]
