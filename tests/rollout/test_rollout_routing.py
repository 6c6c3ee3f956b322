"""The experts an engine says that tokens went to are those of a forward pass, whatever the tokens went through."""

import pickle

import numpy as np
import pytest
import torch
from rollout_models import policy, random_prompts

from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.model.routing import Routing
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.engine import Engine
from deltarl.rollout.outputs import CompletionOutput, RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.snapshot import Snapshot
from deltarl.rollout.worker import make_backend

KINDS = ["hybrid moe", "attention moe"]
LAYERS = 4


def engine_of(model: HybridForCausalLM, **options) -> Engine:
    return Engine(model, record_routing=True, **options)


def moe(kind: str = "hybrid moe", seed: int = 0) -> HybridForCausalLM:
    return policy(kind, seed, layers=LAYERS)


@torch.no_grad()
def chosen(model: HybridForCausalLM, prompt: list[int], answer: CompletionOutput) -> np.ndarray:
    """`[T, layers, k]` of all tokens but the last, in one pass over the whole sequence."""
    ids = torch.tensor([*prompt, *answer.token_ids])
    routing = Routing()
    model.model.packed(ids, Packing.from_lengths([len(ids)]), routing=routing)
    return routing.taken[:-1].numpy()


def assert_chosen(model: HybridForCausalLM, request: RequestOutput) -> None:
    for answer in request.outputs:
        prompt, completion = answer.routed_experts
        assert prompt.dtype == completion.dtype == np.uint8
        assert prompt.shape == (len(request.prompt_token_ids), LAYERS - 1, 2)
        assert completion.shape == (len(answer.token_ids) - 1, LAYERS - 1, 2)
        got = np.concatenate(answer.routed_experts)
        np.testing.assert_array_equal(got, chosen(model, request.prompt_token_ids, answer))


def finish(engine: Engine, steps: int = 10_000) -> dict[str, RequestOutput]:
    done = {}
    while engine.has_unfinished_requests() and steps:
        done |= {output.request_id: output for output in engine.step()}
        steps -= 1
    return done


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 2},
        {"max_prefill_tokens": 16},
        {"num_pages": 6, "max_num_seqs": 8},
        {"num_pages": 9, "max_prefill_tokens": 32},
    ],
    ids=str,
)
def test_forks_pieces_of_prompts_and_preemption(kind, options):
    model, prompts = moe(kind), random_prompts([5, 31, 40, 33, 64, 1])
    params = [SamplingParams(n=3, max_tokens=40 if i else 1, seed=i) for i in range(6)]
    engine = engine_of(model, **options)
    for request in engine.generate(prompts, params):
        assert_chosen(model, request)
        arrays = [answer.routed_experts.prompt for answer in request.outputs]
        assert all(array is arrays[0] for array in arrays)  # one for all samples, also on its way to another process
    assert engine.stats().preemptions > 0 or "num_pages" not in options
    assert engine.stats().free_pages == engine.stats().total_pages


def test_samples_of_a_prompt_are_sent_with_one_copy_of_its_experts():
    prompt, params = random_prompts([100])[0], SamplingParams(n=8, max_tokens=3)
    sent = pickle.dumps(engine_of(moe()).generate([prompt], params))
    arrived = pickle.loads(sent)[0].outputs
    assert all(a.routed_experts.prompt is arrived[0].routed_experts.prompt for a in arrived)
    assert sent.count(arrived[0].routed_experts.prompt.tobytes()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_from_the_prefix_cache(kind):
    model, engine = moe(kind), engine_of(moe(kind), prefix_cache_bytes=1 << 20)
    system, turns = random_prompts([70])[0], random_prompts([9, 12, 20, 5], seed=3)
    for turn in turns:
        (request,) = engine.generate([system + turn], SamplingParams(n=2, max_tokens=12))
        assert_chosen(model, request)
    assert engine.stats().prefix_cache_hits == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_state", [True, False])
def test_a_snapshot_that_goes_on_elsewhere(kind, with_state):
    model, prompt = moe(kind), random_prompts([33])[0]
    first, second = engine_of(model), engine_of(model)
    first.add_request("", prompt, SamplingParams(n=3, max_tokens=40))
    finish(first, 13)
    snapshots = [Snapshot.from_bytes(s.to_bytes()) for s in first.pause("")]
    assert all(s.state.routed_experts.shape == (33 + 12, LAYERS - 1, 2) for s in snapshots)
    second.resume("", snapshots if with_state else [s.without_state() for s in snapshots])
    request = finish(second)[""]
    assert len(request.outputs) == 3
    assert_chosen(model, request)


def test_a_state_without_experts_is_refused_where_they_are_recorded():
    model, prompt = moe(), random_prompts([9])[0]
    silent, recording = Engine(model), engine_of(model)
    silent.add_request("", prompt, SamplingParams(max_tokens=20))
    finish(silent, 5)
    (snapshot,) = silent.pause("")
    with pytest.raises(ValueError, match="did not record routed experts, as this one does"):
        recording.resume("", [snapshot])
    recording.resume("", [snapshot.without_state()])
    assert_chosen(model, finish(recording)[""])
    recording.add_request("", prompt, SamplingParams(max_tokens=20))
    finish(recording, 5)
    silent.resume("", recording.pause(""))
    assert finish(silent)[""].outputs[0].routed_experts is None


@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_new_weights_on_the_way(in_flight):
    """Each token's experts are those of the weights that last computed its state."""
    old, new, prompts = moe(), moe(seed=1), random_prompts([9, 20])
    engine = engine_of(moe(), in_flight=in_flight, max_num_seqs=2, max_prefill_tokens=16)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, SamplingParams(n=2, max_tokens=30))
    done = finish(engine, 12)
    assert not done
    engine.load_weights(WeightUpdate.of(new, 3))
    done = finish(engine)
    for answer in done["0"].outputs:
        fed = 9 + answer.weight_versions.count(0) - 1
        assert fed == 9 + 11
        got = np.concatenate(answer.routed_experts)
        old_ones, new_ones = (chosen(m, prompts[0], answer) for m in (old, new))
        assert (old_ones[:fed] != new_ones[:fed]).any()
        if in_flight == "keep":
            np.testing.assert_array_equal(got[:fed], old_ones[:fed])
            assert (got[fed:] != old_ones[fed:]).any()
        else:
            np.testing.assert_array_equal(got, new_ones)
    assert_chosen(new, done["1"])  # had not started


def test_nothing_is_recorded_unless_asked_for():
    model = moe()
    engine = Engine(model)
    (request,) = engine.generate([[3, 4, 5]], SamplingParams(max_tokens=4))
    assert request.outputs[0].routed_experts is None
    latents = engine_of(model).stats().bytes_per_page - engine.stats().bytes_per_page
    assert latents == 32 * (LAYERS - 1) * 2


def test_answers_that_were_aborted_have_none():
    engine = engine_of(moe())
    engine.add_request("", [3, 4, 5], SamplingParams(max_tokens=40))
    finish(engine, 5)
    assert engine.progress("").outputs[0].routed_experts is None
    engine.abort_request("")
    assert engine.step()[0].outputs[0].routed_experts is None


def test_what_has_no_experts_to_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the model has no experts"):
        engine_of(policy())
    with pytest.raises(ValueError, match="'vllm' does not say which experts it used"):
        make_backend("vllm", str(tmp_path), max_num_seqs=4, record_routing=True)
