"""Gated DeltaNet is Kimi Delta Attention whose channels share the gate of their head."""

import torch
from tiny_models import logits_of, random_ids, tiny_model

from deltarl.model.kda_layer import KDALayer


def test_it_is_kda_with_the_same_gate_in_every_channel():
    gdn, kda = tiny_model("gdn"), tiny_model("hybrid", linear_num_heads=3)
    weights = {name: x for name, x in gdn.state_dict().items() if ".a_proj." not in name and "dt_bias" not in name}
    kda.load_state_dict(weights, strict=False)
    layers = [[m for m in model.modules() if isinstance(m, KDALayer)] for model in (gdn, kda)]
    with torch.no_grad():
        for one, other in zip(*layers, strict=True):
            heads, dim = one.num_heads, one.head_dim
            # KDA's low-rank gate carries the gates of the heads in its first channels, and hands each to its head.
            other.f_a_proj.weight.zero_()[:heads] = one.a_proj.weight
            other.f_b_proj.weight.copy_(torch.eye(heads, dim).repeat_interleave(dim, 0))
            other.dt_bias.copy_(one.dt_bias.repeat_interleave(dim))
    ids = random_ids(40)
    torch.testing.assert_close(logits_of(gdn, ids), logits_of(kda, ids), rtol=1e-5, atol=1e-5)


def test_the_gate_matters():
    model, ids = tiny_model("gdn"), random_ids(40)
    before = logits_of(model, ids)
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, KDALayer)).a_proj.weight.mul_(3)
    assert (logits_of(model, ids) - before).abs().max() > 1e-3
