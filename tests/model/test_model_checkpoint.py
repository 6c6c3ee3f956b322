"""Checkpoint folders: what is refused, and which weights are never rounded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, random_ids, tiny_model

from deltarl.model.checkpoint import load_model, save_model
from deltarl.model.hybrid import HybridForCausalLM

KEEP_FP32 = ("A_log", "dt_bias", "e_score_correction_bias")


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_model("moe"), tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("variant", ["hybrid", "attention", "rope", "bounded", "gdn", "moe", "q_lora"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, variant):
    model = tiny_model(variant)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    ids = random_ids(40)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))  # needs rope and gate bound from config.json


def test_the_huggingface_names_read_and_write_the_same_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    ids = random_ids(9)
    assert torch.equal(logits_of(HybridForCausalLM.from_pretrained(tmp_path), ids), logits_of(model, ids))


def test_a_checkpoint_may_be_in_several_files(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    for i in range(2):
        save_file({name: weights[name] for name in names[i::2]}, folder / f"model-0000{i + 1}-of-00002.safetensors")
    assert torch.equal(logits_of(load_model(folder), random_ids(9)), logits_of(tiny_model("moe"), random_ids(9)))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a checkpoint: it needs config\.json"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"at least one \.safetensors"):
        load_model(folder)


def test_another_model_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="holds a 'llama' model; only kimi_linear"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "missing lm_head.weight"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), "unexpected model.extra.weight"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(5)}), r"norm.weight has shape \(5,\).*needs \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_only_the_first_of_many_problems_are_listed(folder):
    edit_weights(folder, lambda w: [w.pop(name) for name in list(w) if "experts" in name])
    with pytest.raises(ValueError, match=r"and [0-9]+ more"):
        load_model(folder)


def test_bf16_keeps_what_the_decay_and_the_router_are_computed_from(folder, tmp_path):
    whole = tiny_model("moe")
    low = load_model(folder, torch.bfloat16)
    for name, x in low.state_dict().items():
        assert x.dtype == (torch.float32 if name.endswith(KEEP_FP32) else torch.bfloat16), name
        if name.endswith(KEEP_FP32):
            assert torch.equal(x, whole.state_dict()[name])
    save_model(low, tmp_path / "low")
    again = load_model(tmp_path / "low")
    assert {n: x.dtype for n, x in again.state_dict().items()} == {n: x.dtype for n, x in low.state_dict().items()}
    assert json.loads((tmp_path / "low" / "config.json").read_text())["dtype"] == "bfloat16"
    raised = load_model(tmp_path / "low", torch.float32)
    assert {x.dtype for x in raised.state_dict().values()} == {torch.float32}
    save_model(whole.bfloat16(), tmp_path / "lower")
    assert {name for name, x in load_model(tmp_path / "lower").state_dict().items() if x.dtype == torch.float32} == {
        name for name in low.state_dict() if name.endswith(KEEP_FP32)
    }


def test_a_bf16_model_computes_about_what_its_fp32_self_does(folder):
    ids = random_ids(40)
    low, whole = (logits_of(load_model(folder, dtype), ids).float().log_softmax(-1) for dtype in (torch.bfloat16, None))
    assert 0 < (low - whole).abs().mean() < 0.2 * whole.std()
