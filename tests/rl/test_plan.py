"""A dry run: real sizes, nothing started, and what the run would refuse."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deltarl.model.checkpoint import load_model
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rl import plan as planning
from deltarl.rl.plan import make_plan
from deltarl.rl.run_grpo import main
from deltarl.rl.warm_start import new_model

TINY = Path(__file__).parent / "tiny.yaml"


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path, capsys, tiny):
    assert main(["--config", str(TINY), "--dry-run", f"output_dir={tmp_path / 'runs'}"]) == 0
    text = capsys.readouterr().out
    config = tiny()
    model = new_model(config.model, len(byte_tokenizer(config.model.tokenizer_extra_tokens)), 0)
    assert f"policy: {model.num_parameters():,} parameters, 2 layers" in text
    assert "4 problems x 4 answers = 16 answers, at most 160 tokens sampled and 800 learned from" in text
    assert "time of a step: an estimate of " in text
    assert "would be refused" not in text
    assert not (tmp_path / "runs").exists()


def test_memory_counts_every_copy_of_the_weights_and_the_cache(tiny):
    def learner_gib(*overrides):
        text = "\n".join(make_plan(tiny(*overrides)).lines)
        return text, float(text.split("learner ranks: ")[1].split()[0])

    big = ("model.hidden_size=512", "model.intermediate_size=2048")
    _, plain = learner_gib(*big)
    text, all_of_them = learner_gib(*big, "algorithm=ppo", "learner.beta=0.1")
    assert "reference model" in text
    assert all_of_them == pytest.approx(plain / 4 * 9, rel=0.03)  # 4 for the policy, 1 reference, 4 for the critic
    text, sharded = learner_gib(*big, "algorithm=ppo", "learner.num_ranks=8", "learner.sharding=fsdp")
    _, whole = learner_gib(*big, "algorithm=ppo")
    layer = float(text.split("one layer put together ")[1].split(")")[0])
    assert 0.02 * whole < layer < 0.2 * whole  # two layers and the embeddings, of two models with state
    assert sharded == pytest.approx(whole / 8 + layer, rel=0.03)
    caches = []
    for generations in (256, 1024):
        plan = make_plan(tiny(f"rollout.num_generations={generations}", "rollout.max_num_seqs=4096"))
        caches.append(float(plan.lines[2].rstrip(")").split()[-1]))
    assert caches[1] == pytest.approx(4 * caches[0], rel=0.05)


def test_a_large_model_is_not_tried_but_estimated_with_the_formula(tiny, monkeypatch):
    monkeypatch.setattr(planning, "PROBE_PARAMETERS", 1000)
    config = tiny()
    (line,) = [x for x in make_plan(config).lines if x.startswith("time of a step")]
    parameters = int(make_plan(config).lines[0].split()[1].replace(",", ""))
    assert "not measured" in line
    assert f"{2 * parameters * (160 + 3 * 800):.3g} FLOP" in line


def test_another_model_is_planned_by_its_own_sizes(tiny, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 128}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_attention_heads=2, num_key_value_heads=1, **sizes))
    model.bfloat16().save_pretrained(tmp_path / "llama")
    byte_tokenizer([]).save_pretrained(tmp_path / "llama")
    plan = make_plan(tiny(f"model.path={tmp_path / 'llama'}", "sft=null", "rollout.backend=transformers"))
    assert plan.refused == []
    assert plan.lines[0] == f"policy: {model.num_parameters():,} parameters, 3 layers"
    gib = model.num_parameters() / 2**30
    assert f"(weights {4 * gib:.3g}, gradient {4 * gib:.3g}, AdamW {8 * gib:.3g})" in plan.lines[1]  # in fp32
    assert f"(weights {2 * gib:.3g}; keys and values of its sequences are not counted)" in plan.lines[2]
    assert f"{2 * model.num_parameters() * (160 + 3 * 800):.3g} FLOP" in plan.lines[4]


def test_a_hybrid_stored_in_bf16_learns_in_fp32_and_samples_in_bf16(tiny, bf16_folder):
    byte_tokenizer([]).save_pretrained(bf16_folder)
    plan = make_plan(tiny(f"model.path={bf16_folder}", "sft=null", "learner.beta=0.1"))
    gib = load_model(bf16_folder).num_parameters() / 2**30
    parts = f"(weights {4 * gib:.3g}, gradient {4 * gib:.3g}, AdamW {8 * gib:.3g}, reference model {2 * gib:.3g})"
    assert parts in plan.lines[1]
    assert f"(weights {2 * gib:.3g}, states and latents" in plan.lines[2]
    lora = make_plan(tiny(f"model.path={bf16_folder}", "sft=null", "learner.lora.rank=4")).lines[1]
    assert f"(weights {2 * gib:.3g}, merged matrices" in lora


def test_the_probe_runs_with_the_threads_of_the_run(tiny, monkeypatch):
    seen, before = [], torch.get_num_threads()
    for name in ("_learning_speed", "_decode_seconds"):
        monkeypatch.setattr(planning, name, lambda *unused: seen.append(torch.get_num_threads()) or 1.0)
    make_plan(tiny("learner.num_threads=3", "rollout.num_threads=2"))
    assert seen == [3, 2]
    assert torch.get_num_threads() == before


def test_what_would_be_refused_is_told_at_once(capsys, tmp_path):
    arguments = ["--config", str(TINY), "--dry-run", "data.max_prompt_tokens=2"]
    assert main([*arguments, "reward.functions=[{name: a, function: no_such_module_here:f}]"]) == 2
    text = capsys.readouterr().out
    assert text.count("would be refused: ") == 2
    assert "no_such_module_here" in text
    assert "data.train: row 0: the prompt has" in text


def test_more_memory_than_there_is_would_be_refused(tiny):
    plan = make_plan(tiny("rollout.num_generations=1000", "rollout.num_workers=100000"))
    assert any("all processes together need" in why for why in plan.refused)
