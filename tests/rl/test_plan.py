"""A dry run: real sizes, nothing started, and what the run would refuse."""

from pathlib import Path

import pytest
import torch
from transformers import KimiLinearConfig, LlamaConfig, LlamaForCausalLM

from deltarl.actor.placement import Node, fits
from deltarl.model.checkpoint import load_model
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rl import plan as planning
from deltarl.rl.cli import load_config
from deltarl.rl.layout import layout
from deltarl.rl.plan import make_plan
from deltarl.rl.plan_hardware import plan_hardware
from deltarl.rl.plan_sizes import (
    active_parameters,
    learner_parts,
    read_by_decoding,
    sequence_bytes,
    staged_bytes,
    stored_bytes,
)
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
    parts = (
        f"(weights {4 * gib:.3g}, gradient {4 * gib:.3g}, AdamW {8 * gib:.3g}, reference model {2 * gib:.3g}, "
        f"rounded weights {2 * gib:.3g})"
    )
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


CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
RECIPES = ["one_gpu", "eight_gpus", "several_nodes"]


@pytest.fixture(scope="module")
def kimi() -> HybridForCausalLM:
    """The released model's sizes."""
    with torch.device("meta"):
        sizes = KimiLinearConfig.from_pretrained(CLUSTER / "kimi_linear_48b_a3b")
        return HybridForCausalLM(sizes).type(torch.bfloat16)


def test_the_sizes_of_the_released_model_are_48_billion_of_which_3_are_active(kimi):
    # 20 KDA layers of 39.6e6, 26 mixtures of 256 + 1 experts of 3 x 1024 x 2304, 2 tables of 163840 x 2304.
    assert kimi.num_parameters() == 49_122_675_072
    assert active_parameters(kimi) == pytest.approx(3.1e9, rel=0.01)
    hand = 20 * 39.6e6 + 7 * 29.1e6 + 26 * 9 * 3 * 1024 * 2304 + 3 * 9216 * 2304 + 163840 * 2304
    assert active_parameters(kimi) == pytest.approx(hand, rel=0.01)
    assert read_by_decoding(kimi, 1) == pytest.approx(2 * hand, rel=0.01)
    assert read_by_decoding(kimi, 10_000) == pytest.approx(2 * (49.12e9 - 163840 * 2304), rel=0.001)


@pytest.mark.parametrize(
    ("recipe", "overrides", "refused"),
    [
        ("8xh200", [], []),
        (
            "8xh200",
            ["rollout.num_workers=16", "rollout.num_gpus=0.2"],
            ["a learner rank and its 2 rollout workers need"],
        ),
        ("8xh200", ["hardware.host_memory_gb=1000"], ["a node's host needs"]),
        ("8x80gb", [], ["a rollout worker needs 98.2 GB for the weights alone and h100-80gb has 73.6 GB usable"]),
        ("2_nodes", [], []),
        (
            "2_nodes",
            ["hardware.device=h100-80gb"],
            ["it would fit with learner.num_ranks=8 with sharding=fsdp_offload", "take devices of more memory (h200)"],
        ),
        ("2_nodes", ["hardware.nodes=1"], ["more than 1 nodes of 8 GPUs have"]),
    ],
)
def test_the_48b_model_is_refused_where_it_does_not_fit_and_told_what_would(kimi, recipe, overrides, refused):
    config = load_config(CLUSTER / f"kimi_linear_48b_{recipe}.yaml", overrides)
    assert config.hardware is not None
    plan = plan_hardware(config, kimi, config.hardware)
    assert len(plan.refused) == len(refused), plan.refused
    for why, part in zip(plan.refused, refused, strict=True):
        assert part in why


def test_the_parts_of_the_plan_are_the_sums_they_should_be(kimi):
    config = load_config(CLUSTER / "kimi_linear_48b_2_nodes.yaml")
    text = "\n".join(plan_hardware(config, kimi, config.hardware).lines)
    # Of 8 ranks: 4 bytes a weight of masters, 4 of gradient, 8 of AdamW.
    assert "(weights 24.6, gradient 24.6, AdamW 49.1, one layer put together 14.9" in text
    # 20 layers of 32 states of 128 x 128 in fp32 and what the engine keeps beside them, and 8,064 bytes a token.
    engine = sequence_bytes(config, kimi)
    assert 20 * 32 * 128 * 128 * 4 + 4608 * 8064 < engine < 160e6
    assert f"at {engine / 1e6:.1f} MB of states and latents" in text
    assert (
        "98.2 GB by broadcast from rank 0 to 8 rollout workers (2.0 s at 50 GB/s), put together from 196.5 GB" in text
    )
    store = load_config(CLUSTER / "kimi_linear_48b_2_nodes.yaml", ["rollout.weight_transport=object_store"])
    text = "\n".join(plan_hardware(store, kimi, config.hardware).lines)
    assert "98.2 GB over the network to 1 other nodes; 786.0 GB from object stores into 8 rollout workers" in text


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_learner_that_goes_on_holds_versions_for_samplers_unless_they_lie_in_the_object_store(tiny, staleness):
    own = ["learner.num_gpus=1", "rollout.num_gpus=1", "placement=disaggregated", f"rollout.max_staleness={staleness}"]
    model = new_model((config := tiny(*own)).model, 300, 0)
    held = {name: size for name, size in learner_parts(config, model).items() if "for samplers" in name}
    versions = staleness + 1
    assert held == ({f"{versions} versions for samplers": versions * stored_bytes(model)} if staleness else {})
    stored = learner_parts(tiny(*own, "rollout.weight_transport=object_store"), model)
    assert not [name for name in stored if "for samplers" in name]


def test_samplers_that_take_a_broadcast_in_while_they_work_need_room_for_it(tiny):
    own = ["learner.num_gpus=1", "rollout.num_gpus=1", "placement=disaggregated", "rollout.max_staleness=1"]
    model = new_model((config := tiny(*own)).model, 300, 0)
    assert staged_bytes(config, model) == 0
    assert staged_bytes(tiny(*own, "rollout.in_flight=keep"), model) == stored_bytes(model)
    assert staged_bytes(tiny(*own, "rollout.in_flight=keep", "rollout.weight_transport=object_store"), model) == 0
    shared = ["learner.num_gpus=0.5", "rollout.num_gpus=0.25", "rollout.max_staleness=1", "rollout.in_flight=keep"]
    assert staged_bytes(tiny(*shared), model) == 0, "it is read where the learner has it"
    before, after = (make_plan(tiny(*own, f"rollout.in_flight={how}")).lines[2] for how in ("none", "replay"))
    weights = before.split("(weights ")[1].split(",")[0]
    assert before.split("(weights ")[1] == after.split("(weights ")[1].replace(
        f", the next version of them {weights}", ""
    )
    assert before != after


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_for_clusters_are_read_and_their_layout_fits(recipe):
    config = load_config(CLUSTER / f"{recipe}.yaml")
    gpus, nodes = {"one_gpu": (1, 1), "eight_gpus": (8, 1), "several_nodes": (8, 2)}[recipe]
    assert fits(layout(config, there := [Node(str(i), 32, gpus) for i in range(nodes)]).bundles, there)
    assert not fits(layout(config, few := [Node("0", 32, gpus - 1)]).bundles, few)
