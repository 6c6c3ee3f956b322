"""Answers watched while they are sampled: the text of the tokens so far, and no token decoded again and again."""

from functools import cache

import pytest
from rollout_models import VOCAB, policy, random_prompts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deltarl.rollout.engine import Engine
from deltarl.rollout.outputs import CompletionOutput
from deltarl.rollout.params import SamplingParams

HALF = "\N{REPLACEMENT CHARACTER}"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """As many pieces as the policies have tokens, most of them parts of a character of several bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = [letter for text in "你😀éab" for letter in byte_level.pre_tokenize_str(text)[0][0]]
    pieces = list(dict.fromkeys([*parts, *letters]))[:VOCAB]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer, made.decoder = byte_level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def decode(token_ids: list[int]) -> str:
    return tokenizer().decode(token_ids, clean_up_tokenization_spaces=False)


def cut(answer: CompletionOutput, n: int) -> tuple[list[int], list[float], list[float], list[int]]:
    return answer.token_ids[:n], answer.logprobs[:n], answer.sampling_logprobs[:n], answer.weight_versions[:n]


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("stop", [(), ("never found",)])
def test_progress_is_what_the_answer_begins_with(every, stop):
    engine = Engine(policy(), tokenizer=tokenizer(), max_num_seqs=3, num_pages=6)  # few pages: some are preempted
    prompts = random_prompts([9, 30])
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, SamplingParams(n=2, max_tokens=60, seed=i, stop=stop))
    seen, final, steps = {"0": [], "1": []}, {}, 0
    while engine.has_unfinished_requests():
        final |= {output.request_id: output for output in engine.step()}
        steps += 1
        if steps % every == 0:
            for name in seen.keys() - final.keys():
                seen[name].append(engine.progress(name))
    assert engine.stats().preemptions > 0
    texts = []
    for name, outputs in seen.items():
        for output in outputs:
            for now, end in zip(output.outputs, final[name].outputs, strict=True):
                # Compared only now: what was handed out must not have grown since.
                assert cut(now, len(now.token_ids)) == cut(end, len(now.token_ids))
                assert now.text == decode(now.token_ids)
                assert end.text.startswith(now.text.rstrip(HALF))
                texts.append(now.text)
        assert all(answer.text == decode(answer.token_ids) for answer in final[name].outputs)
    assert sum(text.endswith(HALF) for text in texts) > 5


@pytest.mark.parametrize("stop", [(), ("never found",)])
def test_watching_every_step_decodes_a_token_a_few_times_only(monkeypatch, stop):
    decoded = 0
    plain = PreTrainedTokenizerFast.decode

    def counting(self, token_ids, **options):
        nonlocal decoded
        decoded += len(token_ids)
        return plain(self, token_ids, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", counting)
    engine = Engine(policy(), tokenizer=tokenizer())
    engine.add_request("", random_prompts([3])[0], SamplingParams(max_tokens=120, stop=stop))
    costs = []
    while engine.has_unfinished_requests():
        before = decoded
        if not engine.step():
            engine.progress("")
            costs.append(decoded - before)
    assert len(costs) > 100
    # Of one step: the few tokens after the last settled one, at most thrice, and what settles them.
    assert max(costs) < 3 * 32
    assert sum(costs[60:]) < 2 * sum(costs[:60])


def test_a_stop_string_split_over_tokens_ends_the_watched_text_before_it():
    engine = Engine(policy(), tokenizer=tokenizer())
    prompt, params = random_prompts([9])[0], SamplingParams(max_tokens=80, seed=4)
    engine.add_request("free", prompt, params)
    while not (free := engine.step()):
        pass
    text = free[0].outputs[0].text
    whole = [i for i in range(4, len(text) - 2) if HALF not in text[i : i + 3] and text.find(text[i : i + 3]) == i]
    assert whole
    stop = text[whole[0] : whole[0] + 3]
    engine.add_request("", prompt, SamplingParams(max_tokens=80, seed=4, stop=(stop,)))
    texts = []
    while not (done := engine.step()):
        texts.append(engine.progress("").outputs[0].text)
    (answer,) = done[0].outputs
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[: whole[0]], "stop", stop)
    assert any(t.rstrip(HALF).endswith(stop[:2]) for t in texts)  # it came in pieces
    assert all(text.startswith(t.rstrip(HALF)) for t in texts)
