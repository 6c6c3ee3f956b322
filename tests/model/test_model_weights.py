"""Published weights arrive as they were sent, or not at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from deltarl.model.checkpoint import KEEP_FP32
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weights import WeightMismatchError, WeightUpdate, checksum


def snapshot(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def to_bf16(model: HybridForCausalLM) -> HybridForCausalLM:
    for name, parameter in model.named_parameters():
        if not name.endswith(KEEP_FP32):
            parameter.data = parameter.data.bfloat16()
    return model


def assert_equal(model, weights):
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("convert", [lambda m: m, to_bf16])
def test_weights_arrive_bit_for_bit(convert):
    source, target = (convert(tiny_model("moe", seed=seed)) for seed in (0, 1))
    update = WeightUpdate.of(source, 7)
    update.load_into(target)
    assert_equal(target, snapshot(source))
    assert WeightUpdate.of(target, 8).checksum == update.checksum
    assert update.version == 7


def test_an_update_is_a_copy_and_may_be_read_only():
    source, target = tiny_model(seed=0), tiny_model(seed=1)
    update = WeightUpdate.of(source, 1)
    before = snapshot(source)
    for array in update.arrays.values():
        array.flags.writeable = False
    with torch.no_grad():
        source.lm_head.weight.zero_()
    update.load_into(target)
    assert_equal(target, before)
    with torch.no_grad():
        target.lm_head.weight.zero_()
    assert checksum(update.arrays) == update.checksum


def test_one_flipped_bit_anywhere_is_noticed():
    model = tiny_model("moe")
    update = WeightUpdate.of(model, 3)
    for name, array in update.arrays.items():
        damaged = array.copy()
        damaged.view(np.int32).reshape(-1)[-1] ^= 1  # the last mantissa bit
        with pytest.raises(WeightMismatchError, match=r"version 3 .*checksum"):
            replace(update, arrays={**update.arrays, name: damaged}).load_into(model)
    update.load_into(model)


def test_the_checksum_covers_names_shapes_and_types_but_not_the_order():
    a, b = np.arange(4, dtype=np.float32), np.ones((2, 3), np.float32)
    base = checksum({"a": a, "b": b})
    assert checksum({"b": b, "a": a}) == base
    others = [{"a": b, "b": a}, {"a": a, "c": b}, {"a": a, "b": b.T.copy()}, {"a": a.view(np.int32), "b": b}, {"a": a}]
    assert base not in [checksum(other) for other in others]


@pytest.mark.parametrize("misfit", ["missing", "extra", "shape", "dtype"])
def test_weights_that_do_not_fit_leave_the_model_as_it_was(misfit):
    model = tiny_model()
    source = to_bf16(tiny_model(seed=1)) if misfit == "dtype" else tiny_model(seed=1)
    update = WeightUpdate.of(source, 1)
    arrays = dict(update.arrays)
    if misfit == "missing":
        del arrays["lm_head.weight"]
    elif misfit == "extra":
        arrays["more"] = np.zeros(3, np.float32)
    elif misfit == "shape":
        arrays["lm_head.weight"] = arrays["lm_head.weight"][:-1]
    before = snapshot(model)
    with pytest.raises(WeightMismatchError):
        WeightUpdate(1, checksum(arrays), arrays).load_into(model)
    assert_equal(model, before)


def test_fp32_weights_for_a_bf16_model_are_refused_and_leave_it_as_it_was():
    model = to_bf16(tiny_model())
    before = snapshot(model)
    with pytest.raises(WeightMismatchError):
        WeightUpdate.of(tiny_model(seed=1), 1).load_into(model)
    assert_equal(model, before)
