"""The sampler computes what the learner computes, and a sample does not depend on its company."""

from pathlib import Path

import pytest
import torch
from rollout_models import VOCAB, GroupEngine, Trajectory, largest_gap, policy, random_prompts, scored
from transformers import GenerationMixin, KimiLinearForCausalLM

from deltarl.model.checkpoint import save_model
from deltarl.model.config import uses_rope
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rollout.params import SamplingParams

KINDS = ["hybrid", "forgetful", "attention", "rope", "moe"]
LENGTHS = [1, 2, 5, 15, 16, 17, 31, 40]


def flat(groups: list[list[Trajectory]]) -> list[Trajectory]:
    return [trajectory for group in groups for trajectory in group]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_likeliest_token_of_the_full_forward(kind):
    model = policy(kind)
    prompts = random_prompts(LENGTHS)
    for trajectory in flat(GroupEngine(model).generate(prompts, SamplingParams(temperature=0, max_tokens=40))):
        want = scored(model, trajectory)
        assert trajectory.completion_ids == want.argmax(-1).tolist()
        assert largest_gap(model, trajectory) <= 1e-5  # at temperature 1


class Generating(HybridForCausalLM, GenerationMixin):
    """Our whole forward pass under transformers' `generate`, which computes all tokens again for every new one."""

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **unused):
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def with_generate(model: HybridForCausalLM, folder: Path) -> GenerationMixin:
    """transformers' own class of the model; it has no RoPE, and there ours has to do."""
    if uses_rope(model.config):
        theirs = Generating(model.config).eval()
        theirs.load_state_dict(model.state_dict())
    else:
        save_model(model, folder)
        theirs = KimiLinearForCausalLM.from_pretrained(folder).eval()
    theirs.generation_config.eos_token_id = None
    return theirs


@pytest.mark.parametrize("kind", ["hybrid", "attention", "rope", "moe", "attention-moe", "rope-moe"])
@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_greedy_equals_generate_of_transformers(tmp_path, kind, count):
    model = policy(kind)
    theirs = with_generate(model, tmp_path)
    prompts = random_prompts([3, 16, 21, 40, *(1 + i % 50 for i in range(count - 4))])
    ours = flat(GroupEngine(model).generate(prompts, SamplingParams(temperature=0, max_tokens=20)))
    assert len(ours) == count
    cached = not isinstance(theirs, Generating)
    for length in {len(prompt) for prompt in prompts}:  # together, but without padding
        same = [trajectory for trajectory in ours if len(trajectory.prompt_ids) == length]
        ids = torch.tensor([trajectory.prompt_ids for trajectory in same])
        mask = torch.ones_like(ids)
        want = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20, use_cache=cached)
        assert [trajectory.completion_ids for trajectory in same] == want[:, length:].tolist()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("kind", KINDS)
def test_sampled_logprobs_are_those_the_learner_computes(kind, temperature):
    model = policy(kind)
    params = SamplingParams(n=2, temperature=temperature, max_tokens=45, seed=5)
    sampled = flat(GroupEngine(model).generate(random_prompts(LENGTHS), params))
    assert len(sampled) == 2 * len(LENGTHS)
    assert max(largest_gap(model, t, temperature) for t in sampled) <= 1e-5


def test_logprobs_are_those_before_truncation():
    model = policy()
    params = SamplingParams(temperature=0.8, top_k=5, top_p=0.7, max_tokens=30, seed=2)
    sampled = flat(GroupEngine(model).generate(random_prompts(LENGTHS), params))
    assert max(largest_gap(model, t, 0.8) for t in sampled) <= 1e-5


def assert_same(got: Trajectory, want: Trajectory) -> None:
    assert got.prompt_ids == want.prompt_ids
    assert got.completion_ids == want.completion_ids
    assert got.logprobs == pytest.approx(want.logprobs, abs=3e-6, rel=0)
    assert got.finish_reason == want.finish_reason


def assert_alone_as_in_any_company(kind: str, lengths: list[int]) -> None:
    """Tokens exactly and log-probabilities to 3e-6, for any number of slots, order and prefill budget."""
    model = policy(kind)
    prompts = random_prompts(lengths, seed=1)
    params = [
        SamplingParams(n=2, max_tokens=10 + 7 * i, seed=100 + i, stop_token_ids=(3, 4)) for i in range(len(prompts))
    ]
    reference = [GroupEngine(model).generate([p], s)[0] for p, s in zip(prompts, params, strict=True)]
    for max_num_seqs in (1, 3, 64):
        for order in (range(len(prompts)), [5, 2, 0, 4, 3, 1]):
            engine = GroupEngine(model, max_num_seqs=max_num_seqs, max_prefill_tokens=40)
            groups = engine.generate([prompts[i] for i in order], [params[i] for i in order])
            for i, group in zip(order, groups, strict=True):
                for got, want in zip(group, reference[i], strict=True):
                    assert_same(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_prompt_and_seed_alone(kind):
    assert_alone_as_in_any_company(kind, [18, 33, 16, 40, 21, 27])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_a_very_short_prompt_depends_on_its_prompt_and_seed_alone(kind):
    assert_alone_as_in_any_company(kind, [4, 33, 16, 9, 1, 27])


def test_a_sample_of_a_group_is_the_same_whatever_the_group_size():
    model, prompts = policy(), random_prompts([6, 19])
    groups = {n: GroupEngine(model).generate(prompts, SamplingParams(n=n, max_tokens=12, seed=3)) for n in (1, 2, 5)}
    for n in (1, 2):
        for small, large in zip(groups[n], groups[5], strict=True):
            for got, want in zip(small, large[:n], strict=True):
                assert_same(got, want)
    assert len({tuple(t.completion_ids) for t in groups[5][0]}) == 5
    twice = GroupEngine(model).generate([prompts[0], prompts[0]], SamplingParams(n=2, max_tokens=12, seed=3))
    assert twice[0] == twice[1]


def test_seeds_give_other_samples_and_the_same_seed_the_same():
    model, prompts = policy(), random_prompts([6])
    answers = [
        GroupEngine(model).generate(prompts, SamplingParams(max_tokens=12, seed=seed))[0][0] for seed in (0, 1, 2, 0)
    ]
    assert answers[0] == answers[3]
    assert len({tuple(a.completion_ids) for a in answers}) == 3


def test_top_k_of_one_is_greedy():
    model, prompts = policy(), random_prompts(LENGTHS)
    one = flat(GroupEngine(model).generate(prompts, SamplingParams(top_k=1, max_tokens=20, seed=8)))
    greedy = flat(GroupEngine(model).generate(prompts, SamplingParams(temperature=0, max_tokens=20)))
    assert [t.completion_ids for t in one] == [t.completion_ids for t in greedy]


def test_first_tokens_of_many_samples_follow_the_models_distribution():
    model, prompts = policy(), random_prompts([7])
    n = 4000
    group = GroupEngine(model).generate(prompts, SamplingParams(n=n, max_tokens=1, temperature=0.9))[0]
    counts = torch.bincount(torch.tensor([t.completion_ids[0] for t in group]), minlength=VOCAB)
    probs = scored(model, group[0], 0.9)[0].double().exp()
    chi_square = float(((counts - n * probs).square() / (n * probs)).sum())
    assert chi_square < 36 + 5 * (2 * 36) ** 0.5  # five standard deviations at 36 degrees of freedom
