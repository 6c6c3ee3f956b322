"""The model a run starts from: reproducible, readable by transformers, and supervised on the right tokens."""

from typing import ClassVar

import pytest
import torch
from transformers import KimiLinearForCausalLM, Qwen2Config, Qwen2ForCausalLM

from deltarl.model.checkpoint import load_model
from deltarl.model.policy import load_trainable
from deltarl.rl import supervise as supervise_module
from deltarl.rl import warm_start
from deltarl.rl.config import ModelConfig, SFTConfig
from deltarl.rl.metrics import read_jsonl
from deltarl.rl.problem_set import Demonstration
from deltarl.rl.supervise import CHECKPOINTS, supervise
from deltarl.rl.warm_start import load_tokenizer, new_model, starting_point

TEXTS = [(f"{i}+1=\n", f"\\boxed{{{i + 1}}}") for i in range(64)]
SFT = SFTConfig(steps=30, batch_size=8, learning_rate=1e-2, warmup_steps=2)


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny().model)


@pytest.fixture
def demonstrations(tokenizer):
    return [Demonstration(tokenizer.encode(prompt), completion) for prompt, completion in TEXTS]


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_new_model_depends_on_the_seed_alone(tiny, tokenizer):
    config = tiny().model
    first = weights(new_model(config, len(tokenizer), seed=1))
    torch.rand(7)
    assert same(first, weights(new_model(config, len(tokenizer), seed=1)))
    assert not same(first, weights(new_model(config, len(tokenizer), seed=2)))


def test_the_layers_are_as_configured(tiny, tokenizer):
    def kinds(*overrides):
        return new_model(tiny(*overrides).model, len(tokenizer), 0).config.layer_types

    assert kinds("model.num_hidden_layers=4", "model.full_attention_every=4") == ["linear_attention"] * 3 + [
        "full_attention"
    ]
    assert kinds("model.full_attention_every=1") == ["full_attention"] * 2


def test_a_model_made_here_has_the_dtype_asked_for_but_for_its_decay(tiny, tokenizer, tmp_path):
    config = tiny("model.dtype=bfloat16", "sft=null")
    stored = weights(load_model(starting_point(tmp_path / "initial", config, tokenizer, [])))
    fp32 = {name for name, x in stored.items() if x.dtype == torch.float32}
    assert fp32 == {name for name in stored if name.endswith(("A_log", "dt_bias"))}
    assert fp32
    assert {x.dtype for name, x in stored.items() if name not in fp32} == {torch.bfloat16}
    plain = new_model(tiny().model, len(tokenizer), config.seed)
    assert same(stored, {name: x.to(stored[name].dtype) for name, x in weights(plain).items()})


def test_without_a_warm_start_a_given_model_is_taken_where_it_is(tiny, tokenizer, policy_folder, tmp_path):
    config = tiny(f"model.path={policy_folder}", "sft=null")
    assert starting_point(tmp_path / "initial", config, tokenizer, []) == policy_folder
    assert not (tmp_path / "initial").exists()


def test_the_starting_point_is_a_checkpoint_that_transformers_loads_and_is_made_once(
    tiny, tokenizer, tmp_path, demonstrations
):
    config, folder = tiny("sft=null"), tmp_path / "initial"
    assert starting_point(folder, config, tokenizer, []) == folder
    ours = load_model(folder)
    assert same(weights(ours), weights(new_model(config.model, len(tokenizer), config.seed)))
    theirs, info = KimiLinearForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.tensor([tokenizer.encode("7+12=\n\\boxed{19}")])
    torch.testing.assert_close(theirs(ids).logits, ours(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert load_tokenizer(ModelConfig(path=str(folder))).encode("\\boxed{3}") == tokenizer.encode("\\boxed{3}")

    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.iterdir()}
    assert starting_point(folder, tiny("seed=99"), tokenizer, demonstrations) == folder
    assert {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.iterdir()} == before


def test_a_warm_start_that_is_cut_short_leaves_no_starting_point(
    tiny, tokenizer, tmp_path, monkeypatch, demonstrations
):
    def fail(*args):
        raise KeyboardInterrupt

    config = tiny()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", fail)
        patch.setattr(warm_start, "supervise", lambda *args: None)
        with pytest.raises(KeyboardInterrupt):
            starting_point(tmp_path / "initial", config, tokenizer, demonstrations)
    assert not (tmp_path / "initial").exists()
    starting_point(tmp_path / "initial", tiny("sft=null"), tokenizer, [])
    assert load_model(tmp_path / "initial")


def test_supervision_lowers_the_loss_logs_it_and_repeats_bit_for_bit(tiny, tokenizer, tmp_path, demonstrations):
    runs = []
    for name in ("a", "b"):
        model = new_model(tiny().model, len(tokenizer), seed=0)
        supervise(model, tokenizer, demonstrations, SFT, tmp_path / name, seed=0)
        runs.append(weights(model))
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["sft/loss"] < 0.6 * rows[0]["sft/loss"]
    assert 0 < rows[-1]["sft/token_accuracy"] <= 1
    assert same(*runs)
    assert rows == read_jsonl(tmp_path / "b" / "metrics.jsonl")


class Killed(BaseException):
    pass


@pytest.fixture
def train(request, tiny, tokenizer, demonstrations):
    """Supervises a new model in a folder; the weights and the metrics."""
    config = SFT.model_copy(update={"checkpoint_interval": 10, "steps": 40})
    kind = getattr(request, "param", "hybrid in bf16")

    def train(folder, demonstrations=demonstrations):
        if kind == "qwen2":
            torch.manual_seed(0)
            model = qwen2(len(tokenizer))
        else:
            dtype = "bfloat16" if kind.endswith("bf16") else "float32"
            model = new_model(tiny(f"model.dtype={dtype}").model, len(tokenizer), seed=0)
        supervise(model, tokenizer, demonstrations, config, folder, seed=0)
        return weights(model), read_jsonl(folder / "metrics.jsonl")

    return train


class Steps(supervise_module._LogToJsonl):
    """Notes which steps are done, and ends the process, so to speak, after one of them or the last."""

    done: ClassVar[list[int]] = []
    last = -1

    def on_step_end(self, args, state, control, **unused):
        self.done.append(state.global_step)
        if state.global_step == self.last:
            raise Killed

    def on_train_end(self, args, state, control, **unused):
        if self.last == 0:
            raise Killed


@pytest.fixture
def cut(monkeypatch):
    """`cut(after, train, ...)`: the steps of a training that is cut short after this one, or after the end for 0."""
    monkeypatch.setattr(supervise_module, "_LogToJsonl", Steps)

    def cut(after, train, *args):
        Steps.done, Steps.last = [], -1 if after is None else after
        if after is None:
            return Steps.done, *train(*args)
        with pytest.raises(Killed):
            train(*args)
        return Steps.done

    return cut


@pytest.mark.parametrize(
    ("train", "after", "first", "count"),
    [
        pytest.param("hybrid", 25, 21, 64, id="hybrid"),
        pytest.param("qwen2", 25, 21, 64, id="qwen2"),
        pytest.param("hybrid in bf16", 25, 21, 64, id="within an epoch"),
        pytest.param("hybrid in bf16", 25, 21, 80, id="at its end"),
        pytest.param("hybrid in bf16", 40, 31, 64, id="in the last step"),
        pytest.param("hybrid in bf16", 0, 31, 64, id="after it"),
    ],
    indirect=["train"],
)
def test_cut_short_it_goes_on_bit_for_bit(train, cut, demonstrations, tmp_path, after, first, count):
    shown = (demonstrations * 2)[:count]
    whole = train(tmp_path / "whole", shown)
    assert cut(after, train, tmp_path / "cut", shown)[0] == 1
    steps, found, rows = cut(None, train, tmp_path / "cut", shown)
    assert steps == list(range(first, 41))
    assert same(found, whole[0])
    assert rows == whole[1]


def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(train, cut, tmp_path, monkeypatch):
    real = supervise_module.save_file

    def save(tensors, file):
        if "checkpoint-20" in str(file):
            raise OSError(28, "no space left on device")
        if "checkpoint-30" in str(file):
            raise Killed
        real(tensors, file)

    whole, _ = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(supervise_module, "save_file", save)
        assert cut(99, train, tmp_path / "cut")[-1] == 30
    assert not (tmp_path / "cut" / CHECKPOINTS / "checkpoint-20").exists()
    steps, found, _ = cut(None, train, tmp_path / "cut")
    assert steps[0] == 11
    assert same(found, whole)


@pytest.mark.parametrize(
    ("where", "error"),
    [("torch.save", RuntimeError("failed writing file")), ("safetensors.torch.save_file", OSError(28, "no space"))],
)
def test_a_full_disk_costs_a_checkpoint_alone(
    tiny, tokenizer, demonstrations, tmp_path, monkeypatch, caplog, where, error
):
    def full(*args, **kwargs):
        raise error

    results = []
    for name in ("whole", "full"):
        if name == "full":
            monkeypatch.setattr(where, full)
            monkeypatch.setattr(supervise_module, "save_file", full)
        model = new_model(tiny().model, len(tokenizer), seed=0)
        config = SFT.model_copy(update={"checkpoint_interval": 10})
        supervise(model, tokenizer, demonstrations, config, tmp_path / name, seed=0)
        results.append(weights(model))
    assert same(*results)
    assert [r.message for r in caplog.records if r.name == supervise_module.__name__] == [
        f"the warm start goes on without a checkpoint of step {step}: {error}" for step in (10, 20)
    ]
    assert not list((tmp_path / "full" / CHECKPOINTS).glob("checkpoint-*"))


def qwen2(vocab_size: int) -> Qwen2ForCausalLM:
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=True))


@pytest.mark.parametrize("make", [new_model, qwen2], ids=["hybrid", "qwen2"])
def test_a_model_in_bf16_learns_by_steps_that_bf16_would_lose(make, tiny, tokenizer, tmp_path, demonstrations):
    size = len(tokenizer)
    model = make(tiny().model, size, 0) if make is new_model else make(size)
    model.bfloat16().save_pretrained(tmp_path / "model")
    model = load_trainable(tmp_path / "model")
    start = weights(model)
    config = SFT.model_copy(update={"learning_rate": 2e-5, "steps": 40})
    supervise(model, tokenizer, demonstrations * 5, config, tmp_path / "log", seed=0)
    model.save_pretrained(tmp_path / "trained")
    after = load_trainable(tmp_path / "trained").state_dict()
    assert {name: x.dtype for name, x in after.items()} == {name: x.dtype for name, x in start.items()}
    # Half a unit in the last place of a weight above 1/32 is at least 6e-5: three times one step.
    large = {name: start[name].abs() > 1 / 32 for name in start if name.endswith("proj.weight")}
    moved = sum(int((after[name] != start[name])[where].sum()) for name, where in large.items())
    assert moved > 0.3 * sum(int(where.sum()) for where in large.values())


def test_answers_are_learned_to_their_end_of_sequence_and_prompts_are_not(
    tiny, tokenizer, tmp_path, monkeypatch, demonstrations
):
    seen = []

    class Capture(supervise_module._Trainer):
        def train(self, resume_from_checkpoint):
            seen.append(next(iter(self.get_train_dataloader())))

    monkeypatch.setattr(supervise_module, "_Trainer", Capture)
    model = new_model(tiny().model, len(tokenizer), seed=0)
    supervise(model, tokenizer, demonstrations, SFT, tmp_path / "log", seed=0)
    (batch,) = seen
    shown = {prompt + completion: (prompt, completion) for prompt, completion in TEXTS}
    assert len(batch["input_ids"]) == SFT.batch_size
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        real, learned = ids[mask.bool()].tolist(), labels[mask.bool()]
        prompt, completion = shown[tokenizer.decode(real, skip_special_tokens=True)]
        given = len(tokenizer.encode(prompt))
        assert learned[:given].tolist() == [-100] * given
        assert learned[given:].tolist() == [*tokenizer.encode(completion), tokenizer.eos_token_id]
        assert (labels[~mask.bool()] == -100).all()
