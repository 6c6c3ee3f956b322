"""transformers' generation as a backend: a model that is not ours, by continuous batching and in padded batches."""

from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from deltarl.model.tokenizer import byte_tokenizer
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.backend import RolloutBackend
from deltarl.rollout.hf_backend import HFBackend
from deltarl.rollout.outputs import CompletionOutput, RequestOutput
from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.rng import derive_seed, uniform
from deltarl.rollout.sampler import sample

TOKENIZER = byte_tokenizer()
VOCAB = len(TOKENIZER)
CONTEXT = 96


def qwen3(seed: int = 0, tied: bool = True) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def tokens(outputs: Sequence[RequestOutput]) -> list[list[list[int]]]:
    return [[s.token_ids for s in output.outputs] for output in outputs]


@torch.no_grad()
def scored(model: PreTrainedModel, prompt: list[int], answer: CompletionOutput, temperature: float) -> torch.Tensor:
    """Log-probabilities `[answer, vocab]` of a full forward pass."""
    logits = model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


@pytest.fixture(params=[True, False], ids=["continuous", "padded"])
def continuous(request: pytest.FixtureRequest) -> bool:
    return request.param


LENGTHS = (1, 5, 33, 12, 64, 7, 20)


def test_continuous_batching_is_found_out():
    assert HFBackend(qwen3()).continuous_batching
    assert isinstance(HFBackend(qwen3(), continuous_batching=False), RolloutBackend)


def test_greedy_is_generate(continuous: bool):
    model, asked = qwen3(), prompts(LENGTHS)
    want = [
        model.generate(torch.tensor([p]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        for p in asked
    ]
    backend = HFBackend(model, max_num_seqs=3, continuous_batching=continuous)
    got = backend.generate(asked, SamplingParams(temperature=0, max_tokens=20))
    assert tokens(got) == [[w[0, len(p) :].tolist()] for w, p in zip(want, asked, strict=True)]
    assert all(s.finish_reason == "length" for output in got for s in output.outputs)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_forward_pass(continuous: bool, temperature: float):
    model, asked = qwen3(), prompts(LENGTHS)
    backend = HFBackend(model, max_num_seqs=5, continuous_batching=continuous)
    params = [
        SamplingParams(n=2, temperature=temperature, top_k=k, max_tokens=8 + k, seed=k, logprobs=2)
        for k, _ in enumerate(asked)
    ]
    for prompt, p, output in zip(asked, params, backend.generate(asked, params), strict=True):
        assert output.prompt_token_ids == prompt
        for answer in output.outputs:
            assert len(answer.token_ids) == p.max_tokens
            want = scored(model, prompt, answer, temperature)
            index = torch.tensor(answer.token_ids).unsqueeze(-1)
            got = torch.tensor(answer.logprobs)
            torch.testing.assert_close(got, want.gather(-1, index).squeeze(-1), atol=1e-5, rtol=0)
            assert answer.top_logprobs is not None
            assert [next(iter(top)) for top in answer.top_logprobs] == want.argmax(-1).tolist()
            assert answer.weight_versions == [0] * p.max_tokens


def test_draws_are_the_native_engines(continuous: bool):
    model, [prompt] = qwen3(), prompts([9])
    backend = HFBackend(model, continuous_batching=continuous)
    [output] = backend.generate([prompt], SamplingParams(n=2, max_tokens=12, seed=3))
    for i, answer in enumerate(output.outputs):
        logits = scored(model, prompt, answer, 1.0)
        count = len(logits)
        seeds = torch.full((count,), derive_seed(3, i))
        want = sample(logits, torch.ones(count), uniform(seeds, torch.arange(count)))
        assert want.token.tolist() == answer.token_ids


def test_seeds_do_not_depend_on_the_company(continuous: bool):
    model, asked = qwen3(), prompts(LENGTHS)
    backend = HFBackend(model, max_num_seqs=4, continuous_batching=continuous)
    params = [SamplingParams(n=2, max_tokens=10, seed=i) for i, _ in enumerate(asked)]
    together = tokens(backend.generate(asked, params))
    assert together == tokens(backend.generate(asked, params))
    alone = [tokens(backend.generate([asked[i]], params[i]))[0] for i in (0, 2, 4)]
    assert together[:5:2] == alone
    assert all(group[0] != group[1] for group in together)


def test_ways_to_end(continuous: bool):
    model, asked = qwen3(), prompts([6, 6, 6, 6, 90], seed=1)
    backend = HFBackend(model, tokenizer=TOKENIZER, continuous_batching=continuous)
    free = backend.generate(asked, SamplingParams(temperature=0, max_tokens=20))
    answer, text = free[0].outputs[0], free[2].outputs[0].text
    assert text is not None
    letters = [c for c in text if c.isascii()]
    stop = letters[1]
    params = [
        SamplingParams(temperature=0, max_tokens=20, stop_token_ids=(answer.token_ids[3],)),
        SamplingParams(temperature=0, max_tokens=4),
        SamplingParams(temperature=0, max_tokens=20, stop=(stop,)),
        SamplingParams(
            temperature=0, max_tokens=20, logit_bias={7: 1e4}, repetition_detection=RepetitionDetection(1, min_count=3)
        ),
        SamplingParams(temperature=0, max_tokens=20),
    ]
    got = [output.outputs[0] for output in backend.generate(asked, params)]
    first = answer.token_ids.index(answer.token_ids[3])
    assert got[0].token_ids == answer.token_ids[: first + 1]
    assert (got[0].finish_reason, got[0].stop_reason) == ("stop", answer.token_ids[3])
    assert (got[1].finish_reason, len(got[1].token_ids)) == ("length", 4)
    assert (got[2].finish_reason, got[2].stop_reason) == ("stop", stop)
    assert got[2].text == text[: text.index(stop)]
    assert (got[3].finish_reason, got[3].token_ids) == ("repetition", [7, 7, 7])
    assert (got[4].finish_reason, len(got[4].token_ids)) == ("length", CONTEXT - 90)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_change_with_their_version(continuous: bool, tied: bool):
    other, asked = qwen3(seed=1, tied=tied), prompts([4, 9])
    backend = HFBackend(qwen3(tied=tied), continuous_batching=continuous)
    params = SamplingParams(temperature=0, max_tokens=6)
    before = tokens(backend.generate(asked, params))
    backend.load_weights(WeightUpdate.of(other, 3))
    after = backend.generate(asked, params)
    assert backend.weight_version == 3
    assert after[0].outputs[0].weight_versions == [3] * 6
    assert tokens(after) != before
    assert tokens(after) == tokens(HFBackend(other, continuous_batching=continuous).generate(asked, params))


def test_damaged_weights_are_refused():
    backend = HFBackend(qwen3(), continuous_batching=False)
    update = WeightUpdate.of(qwen3(seed=1), 1)
    name = next(iter(update.arrays))
    damaged = {**update.arrays, name: update.arrays[name] + 1}
    with pytest.raises(WeightMismatchError, match="checksum"):
        backend.load_weights(WeightUpdate(1, update.checksum, damaged))
    assert backend.weight_version == 0


def test_bad_requests(continuous: bool):
    backend = HFBackend(qwen3(), continuous_batching=continuous)
    for asked, params, message in (
        ([[5], []], SamplingParams(), "prompt 1 is empty"),
        ([[5] * CONTEXT], SamplingParams(), "shorten the prompt"),
        ([[VOCAB]], SamplingParams(), "vocabulary"),
        ([[5]], SamplingParams(stop=("x",)), "tokenizer"),
        ([[5]], SamplingParams(logit_bias={VOCAB: 1.0}), "logit_bias"),
        ([[5]], [], "1 prompts but 0"),
    ):
        with pytest.raises(ValueError, match=message):
            backend.generate(asked, params)
    assert backend.generate([], SamplingParams()) == []


def test_model_that_is_not_finite(continuous: bool):
    model = qwen3()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    backend = HFBackend(model, continuous_batching=continuous)
    with pytest.raises(FloatingPointError, match="weights version 0"):
        backend.generate(prompts([4]), SamplingParams())


def test_model_without_continuous_batching_is_sampled_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def refuse(*unused: object) -> None:
        raise ValueError("Invalid layer type")

    monkeypatch.setattr(Qwen3ForCausalLM, "init_continuous_batching", refuse)
    backend = HFBackend(qwen3())
    assert not backend.continuous_batching
    assert len(tokens(backend.generate(prompts([4]), SamplingParams(max_tokens=5)))[0][0]) == 5


def test_generation_config_of_the_checkpoint_is_not_asked():
    model, asked = qwen3(), prompts([5])
    want = tokens(HFBackend(model, continuous_batching=False).generate(asked, SamplingParams(temperature=0)))
    model.generation_config.update(repetition_penalty=9.0, no_repeat_ngram_size=1, eos_token_id=want[0][0][0])
    assert tokens(HFBackend(model, continuous_batching=False).generate(asked, SamplingParams(temperature=0))) == want


def test_learned_positions():
    """GPT-2 has positions that must not count the padding."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.3)
    model, asked = GPT2LMHeadModel(config).eval(), prompts([3, 17, 9])
    for output in HFBackend(model).generate(asked, SamplingParams(max_tokens=9)):
        [answer] = output.outputs
        want = scored(model, output.prompt_token_ids, answer, 1.0)
        got = torch.tensor(answer.logprobs)
        torch.testing.assert_close(
            got, want.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0], atol=1e-5, rtol=0
        )
