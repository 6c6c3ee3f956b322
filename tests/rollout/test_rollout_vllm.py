"""vLLM itself against our models and transformers'. Skipped unless DELTARL_VLLM_PYTHON names an interpreter with vLLM.

Run by `DELTARL_VLLM_PYTHON=.../bin/python pytest tests/rollout/test_rollout_vllm.py -s`; -s shows the figures.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from deltarl.model.checkpoint import save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.kda_layer import KDALayer
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.outputs import CompletionOutput
from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.vllm.backend import INTERPRETER, Probe, VLLMEngine, checkpoint_update
from deltarl.rollout.vllm.process import VLLMError

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get(INTERPRETER),
        reason=f"{INTERPRETER} names no interpreter with vLLM (docs/VLLM.md says how to make one)",
    ),
    pytest.mark.timeout(600),
]

VOCAB = 64
KINDS = ("hybrid", "hybrid-moe", "attention", "qwen3-tied", "qwen3-moe")


@torch.no_grad()
def ours(kind: str, seed: int) -> HybridForCausalLM:
    torch.manual_seed(seed)
    moe = kind == "hybrid-moe"
    config = hybrid_config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        linear_num_heads=2,
        linear_head_dim=8,
        intermediate_size=48,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=256,
        full_attention_every=1 if kind == "attention" else 4,
        initializer_range=0.2,
        num_experts=4 if moe else 0,
        moe_intermediate_size=24 if moe else 0,
    )
    model = HybridForCausalLM(config).eval()
    for module in model.modules():
        if isinstance(module, KDALayer):
            module.dt_bias.uniform_(-5.0, -1.0)
    return model


def theirs(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    if kind == "qwen3-tied":
        return Qwen3ForCausalLM(Qwen3Config(**shared, tie_word_embeddings=True)).eval()
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shared, **more, tie_word_embeddings=False)).eval()


@dataclass
class Served:
    """A model's kind, its vLLM engine, and how to make and publish other weights of that kind."""

    kind: str
    engine: VLLMEngine
    model: Any
    make: Callable[[str, int], Any]
    publish: Callable[[Any, int], WeightUpdate]

    def load(self, seed: int, version: int) -> Any:
        """Makes other weights the served ones, and returns the model that has them."""
        self.model = self.make(self.kind, seed)
        self.engine.load_weights(self.publish(self.model, version))
        return self.model


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind.startswith("qwen3"):
        make, publish = theirs, checkpoint_update
        model = make(kind, 0)
        model.save_pretrained(folder)
        tokenizer(folder)
    else:
        make, publish = ours, WeightUpdate.of
        model = make(kind, 0)
        save_model(model, folder)
    # Fewer sequences at once than the tests ask for: prompts are prefilled beside sequences that decode.
    with VLLMEngine(folder, max_num_seqs=6, max_model_len=128) as engine:
        yield Served(kind, engine, model, make, publish)


def tokenizer(folder: Path) -> None:
    """Token i is the letter chr(64 + i)."""
    letters = Tokenizer(models.WordLevel({chr(64 + i): i for i in range(VOCAB)}, unk_token="@"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)


def prompts(lengths: tuple[int, ...] = (2, 5, 17, 40, 90)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def learner_logprobs(model: Any, prompt: list[int], sample: CompletionOutput, temperature: float) -> torch.Tensor:
    """`[tokens, vocab]`, by a full forward pass."""
    ids = torch.tensor([prompt + sample.token_ids])
    return (model(ids).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)).log_softmax(-1)


def gap_of(served: Served, outputs: list[Any], temperature: float) -> float:
    gaps = [0.0]
    for output in outputs:
        for sample in output.outputs:
            every = learner_logprobs(served.model, output.prompt_token_ids, sample, temperature)
            mine = every.gather(-1, torch.tensor(sample.token_ids).unsqueeze(-1)).squeeze(-1)
            gaps.append(float((mine - torch.tensor(sample.logprobs)).abs().max()))
    return max(gaps)


def report(served: Served, what: str, gap: float) -> None:
    print(f"\n{served.kind}: largest |dlogp| {what}: {gap:.1e}")
    assert gap < 1e-4


def test_prompts_score_as_in_the_learner(served: Served) -> None:
    served.load(1, 1)
    probe = Probe.of(served.model, prompts())
    report(served, "of prompts", probe.largest_gap(served.engine.score(probe.prompts)))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_sampled_logprobs_are_the_learners(served: Served, temperature: float) -> None:
    params = SamplingParams(n=3, temperature=temperature, max_tokens=37, logprobs=2, seed=5)
    outputs = served.engine.generate(prompts(), params)
    report(served, f"of samples at temperature {temperature}", gap_of(served, outputs, temperature))
    for output in outputs:
        assert [sample.index for sample in output.outputs] == [0, 1, 2]
        for sample in output.outputs:
            assert len(sample.token_ids) == 37
            assert sample.finish_reason == "length"
            assert sample.sampling_logprobs == pytest.approx(sample.logprobs if temperature else [0.0] * 37, abs=1e-5)
            every = learner_logprobs(served.model, output.prompt_token_ids, sample, temperature)
            assert sample.top_logprobs is not None
            for step, top in zip(every, sample.top_logprobs, strict=True):
                assert list(top.values()) == pytest.approx(step.topk(2).values.tolist(), abs=1e-4)
            if temperature == 0:
                assert sample.token_ids == [max(top, key=top.__getitem__) for top in sample.top_logprobs]


def test_truncation_changes_the_sampling_logprobs_only(served: Served) -> None:
    params = SamplingParams(n=2, temperature=0.7, top_k=3, max_tokens=20, seed=1)
    outputs = served.engine.generate(prompts(), params)
    report(served, "of truncated samples", gap_of(served, outputs, 0.7))
    for output in outputs:
        for sample in output.outputs:
            every = learner_logprobs(served.model, output.prompt_token_ids, sample, 0.7)
            kept = every.topk(3).values.logsumexp(-1)
            want = torch.tensor(sample.logprobs) - kept
            assert sample.sampling_logprobs == pytest.approx(want.tolist(), abs=1e-4)


def test_a_sample_depends_on_its_seed_and_not_on_its_company(served: Served) -> None:
    params = SamplingParams(n=2, max_tokens=20, seed=11)
    together = served.engine.generate(prompts(), params)
    alone = served.engine.generate(prompts()[2:3], params)[0]
    assert [s.token_ids for s in together[2].outputs] == [s.token_ids for s in alone.outputs]
    assert alone.outputs[0].token_ids != alone.outputs[1].token_ids


def test_stop_tokens_bias_and_repetition(served: Served) -> None:
    always = SamplingParams(logit_bias={7: 1000.0}, max_tokens=20)
    stopped, held_back, repeated = (
        r.outputs[0]
        for r in served.engine.generate(
            prompts()[:3],
            [
                dataclasses.replace(always, stop_token_ids=(7,)),
                dataclasses.replace(always, stop_token_ids=(7,), min_tokens=5, max_tokens=8),
                dataclasses.replace(always, repetition_detection=RepetitionDetection(1, min_count=4)),
            ],
        )
    )
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == ([7], "stop", 7)
    assert len(held_back.token_ids) == 6
    assert 7 not in held_back.token_ids[:5]
    assert (repeated.token_ids, repeated.finish_reason, repeated.stop_reason) == ([7] * 4, "repetition", None)


def test_stop_strings_need_a_tokenizer(served: Served) -> None:
    params = SamplingParams(logit_bias={7: 1000.0}, max_tokens=20, stop=("GGG",))
    if not served.engine.has_tokenizer:
        with pytest.raises(ValueError, match="tokenizer"):
            served.engine.generate(prompts()[:1], params)
        return
    sample = served.engine.generate(prompts()[:1], params)[0].outputs[0]
    assert (sample.token_ids, sample.text, sample.stop_reason) == ([7, 7, 7], "", "GGG")


def test_updates_are_what_the_learner_has(served: Served) -> None:
    """Also there and back again, with the cached prefixes of other weights to fall for."""
    scores = {}
    for version, seed in ((2, 2), (3, 3), (4, 2)):
        model = served.make(served.kind, seed)
        probe = Probe.of(model, prompts())
        served.engine.load_weights(served.publish(model, version), probe, tolerance=1e-4)
        served.model = model
        outputs = served.engine.generate(prompts(), SamplingParams(max_tokens=10))
        assert all(o.outputs[0].weight_versions == [version] * 10 for o in outputs)
        report(served, f"after update {version}", gap_of(served, outputs, 1.0))
        scores[version] = served.engine.score(prompts())
    assert scores[2] == scores[4] != scores[3]


def test_wrong_updates_are_refused(served: Served) -> None:
    model = served.load(4, 5)
    before = served.engine.score(prompts())
    good = served.publish(served.make(served.kind, 5), 6)
    name = "model.layers.0.input_layernorm.weight"
    changed = {**good.arrays, name: good.arrays[name] + 1}
    missing = {key: x for key, x in good.arrays.items() if key != name}
    with pytest.raises(WeightMismatchError, match="checksum"):
        served.engine.load_weights(dataclasses.replace(good, arrays=changed))
    holder = torch.nn.Module()
    holder.state_dict = lambda: {key: torch.tensor(x) for key, x in missing.items()}  # type: ignore[method-assign,assignment]
    with pytest.raises(WeightMismatchError, match=name):
        served.engine.load_weights(WeightUpdate.of(holder, 6))
    assert served.engine.score(prompts()) == before
    assert served.engine.weight_version == 5
    with pytest.raises(WeightMismatchError, match="differ from the publisher's"):
        served.engine.load_weights(good, Probe.of(model, prompts()))
    with pytest.raises(WeightMismatchError, match="failed their probe"):
        served.engine.generate(prompts(), SamplingParams())
    served.load(4, 7)
    assert served.engine.score(prompts()) == before


def test_a_killed_engine_comes_back_with_the_last_weights(served: Served) -> None:
    if served.kind not in ("hybrid-moe", "qwen3-tied"):
        pytest.skip("one of ours and one of transformers' are enough")
    served.load(6, 10)
    before = served.engine.score(prompts())
    os.kill(served.engine._process.pid, signal.SIGKILL)
    with pytest.raises(VLLMError, match="signal 9"):
        served.engine.generate(prompts(), SamplingParams())
    served.engine.restart()
    assert served.engine.score(prompts()) == before
    assert served.engine.weight_version == 10
