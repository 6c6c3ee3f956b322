"""What comes back from `generate`: every sample once, in order, ended for the right reason; and what is refused."""

from dataclasses import replace

import pytest
import torch
from rollout_models import CONTEXT, VOCAB, GroupEngine, Trajectory, largest_gap, policy, random_prompts
from transformers import Qwen3Config, Qwen3ForCausalLM

from deltarl.model.checkpoint import save_model
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import RolloutWorker


@pytest.fixture(scope="module")
def model():
    return policy()


def test_three_hundred_requests_through_sixteen_slots_come_back_once_and_in_order(model):
    lengths = [1 + i * 7 % 40 for i in range(300)]
    prompts = random_prompts(lengths)
    params = [
        SamplingParams(n=1 + i % 3, max_tokens=1 + i * 5 % 23, seed=i, stop_token_ids=tuple(range(3, 3 + i % 4)))
        for i in range(300)
    ]
    engine = GroupEngine(model, max_num_seqs=16, max_prefill_tokens=100)
    groups = engine.generate(prompts, params)
    assert len(groups) == 300
    for prompt, request, group in zip(prompts, params, groups, strict=True):
        assert len(group) == request.n
        for t in group:
            assert t.prompt_ids == prompt
            stop = set(request.stop_token_ids)
            assert not stop & set(t.completion_ids[:-1])
            assert len(t.logprobs) == len(t.completion_ids) <= request.max_tokens
            ended = "stop" if t.completion_ids[-1] in stop else "length"
            assert t.finish_reason == ended
            assert ended == "stop" or len(t.completion_ids) == request.max_tokens
    for i in range(0, 300, 37):
        alone = GroupEngine(model).generate([prompts[i]], params[i])[0]
        assert [t.completion_ids for t in alone] == [t.completion_ids for t in groups[i]]
        assert max(largest_gap(model, t) for t in groups[i]) <= 1e-5


def test_a_stop_token_ends_the_answer_and_belongs_to_it(model):
    prompts = random_prompts([5])
    free = GroupEngine(model).generate(prompts, SamplingParams(max_tokens=30, seed=1))[0][0]
    assert free.finish_reason == "length"
    assert len(free.completion_ids) == 30
    stop = free.completion_ids[10]
    first = free.completion_ids.index(stop)
    stopped = GroupEngine(model).generate(prompts, SamplingParams(max_tokens=30, seed=1, stop_token_ids=(stop,)))[0][0]
    assert stopped.finish_reason == "stop"
    assert stopped.completion_ids == free.completion_ids[: first + 1]
    at_the_limit = SamplingParams(max_tokens=first + 1, seed=1, stop_token_ids=(stop,))
    assert GroupEngine(model).generate(prompts, at_the_limit)[0][0].finish_reason == "stop"


def test_stop_tokens_of_one_request_do_not_stop_another(model):
    prompt = random_prompts([5])[0]
    every = tuple(range(VOCAB))
    params = [SamplingParams(max_tokens=9, stop_token_ids=s) for s in ((), every, (), (VOCAB - 1,), every)]
    lengths = [len(g[0].completion_ids) for g in GroupEngine(model, max_num_seqs=2).generate([prompt] * 5, params)]
    assert lengths[1] == lengths[4] == 1
    assert lengths[0] == lengths[2] == 9


def test_one_token_is_the_least_there_can_be(model):
    group = GroupEngine(model).generate(random_prompts([17]), SamplingParams(n=3, max_tokens=1))[0]
    assert [len(t.completion_ids) for t in group] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["hybrid", "attention"])
@pytest.mark.parametrize("max_model_len", [2, 33, 40, 64, None])
def test_prompt_and_answer_together_never_exceed_the_context(kind, max_model_len):
    limit = max_model_len or CONTEXT
    prompts = random_prompts([n for n in (1, 20, limit - 1) if n < limit])
    model = policy(kind)
    groups = GroupEngine(model, max_model_len=max_model_len).generate(prompts, SamplingParams(n=2, max_tokens=1000))
    for prompt, group in zip(prompts, groups, strict=True):
        for t in group:
            assert len(t.completion_ids) == limit - len(prompt)
            assert t.finish_reason == "length"
            assert largest_gap(model, t) <= 1e-5


@pytest.mark.parametrize("short", [3, 12])
def test_a_short_request_is_not_stretched_by_a_long_one_in_its_batch(model, short):
    prompts = random_prompts([4, 4])
    params = [SamplingParams(max_tokens=short), SamplingParams(max_tokens=90)]
    assert [len(g[0].completion_ids) for g in GroupEngine(model).generate(prompts, params)] == [short, 90]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt of request .* is empty"),
        ([5] * CONTEXT, f"has {CONTEXT} tokens and max_model_len is {CONTEXT}: no room"),
        ([3, VOCAB], rf"has token ids outside the vocabulary 0\.\.{VOCAB - 1}"),
        ([-1, 3], "outside the vocabulary"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        GroupEngine(model).generate([[3, 4], prompt], SamplingParams())


def test_no_prompts_give_no_answers(model):
    assert GroupEngine(model).generate([], SamplingParams()) == []


@pytest.mark.parametrize(
    "options", [{"max_num_seqs": 0}, {"max_model_len": 1}, {"max_model_len": CONTEXT + 1}, {"max_model_len": 0}]
)
def test_engine_limits_out_of_range_are_refused(model, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        GroupEngine(model, **options)


def test_params_must_be_one_or_one_for_each_prompt(model):
    with pytest.raises(ValueError, match="2 prompts but 1 SamplingParams"):
        GroupEngine(model).generate([[3], [4]], [SamplingParams()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -2),
        ("max_tokens", 0),
    ],
)
def test_sampling_params_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"SamplingParams.{name} = {value} is out of range"):
        SamplingParams(**{name: value})


def test_new_weights_change_the_version_and_the_answers():
    engine, prompts, params = GroupEngine(policy(seed=0)), random_prompts([9]), SamplingParams(max_tokens=20)
    before = engine.generate(prompts, params)[0][0]
    learner = policy(seed=1)
    engine.load_weights(WeightUpdate.of(learner, 4))
    after = engine.generate(prompts, params)[0][0]
    assert (before.weight_versions[0], after.weight_versions[0], engine.weight_version) == (0, 4, 4)
    assert after.completion_ids != before.completion_ids
    assert after.completion_ids == GroupEngine(learner).generate(prompts, params)[0][0].completion_ids
    assert largest_gap(learner, after) <= 1e-5


def test_weights_with_a_wrong_checksum_are_refused_and_the_version_stays():
    engine = GroupEngine(policy())
    update = WeightUpdate.of(policy(seed=1), 4)
    with pytest.raises(WeightMismatchError, match="checksum"):
        engine.load_weights(replace(update, checksum="0" * 32))
    assert engine.weight_version == 0


@pytest.mark.parametrize("where", ["model.norm.weight", "model.layers.0.self_attn.b_proj.weight"])
def test_weights_that_are_not_finite_stop_the_run(where):
    model = policy()
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite under weights version 0"):
        GroupEngine(model).generate(random_prompts([4]), SamplingParams())


def test_a_worker_is_an_engine_over_a_checkpoint(tmp_path, model):
    save_model(model, tmp_path)
    worker = RolloutWorker(str(tmp_path), max_num_seqs=4)
    prompts, params = random_prompts([5, 8]), [SamplingParams(n=2, max_tokens=6, seed=i) for i in range(2)]
    got = [Trajectory.of(request) for request in worker.generate(prompts, params)]
    assert got == GroupEngine(model, max_num_seqs=4).generate(prompts, params)
    worker.load_weights(WeightUpdate.of(policy(seed=1), 2))
    assert worker.generate(prompts, params)[0].outputs[0].weight_versions == [2] * 6


def test_a_worker_may_have_transformers_sample_any_other_model(tmp_path, model):
    torch.manual_seed(0)
    numbers = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    Qwen3ForCausalLM(Qwen3Config(**numbers, **heads)).save_pretrained(tmp_path / "qwen")
    worker = RolloutWorker(str(tmp_path / "qwen"), max_num_seqs=4, backend="transformers")
    groups = worker.generate(random_prompts([5, 8]), [SamplingParams(n=2, max_tokens=6, seed=i) for i in range(2)])
    assert [len(t.token_ids) for group in groups for t in group.outputs] == [6] * 4
    save_model(model, tmp_path / "hybrid")
    with pytest.raises(ValueError, match='is a hybrid: have the "native" backend sample it'):
        RolloutWorker(str(tmp_path / "hybrid"), max_num_seqs=4, backend="transformers")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match='must be "native", "transformers" or "vllm", got \'sglang\''):
        RolloutWorker("nowhere", max_num_seqs=4, backend="sglang")
