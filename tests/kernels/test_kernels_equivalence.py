"""The chunkwise form is the recurrence: output, final state and every gradient, whatever the lengths and the gate."""

from dataclasses import replace

import pytest
import torch
from kda_inputs import (
    HEADS,
    KEY_DIM,
    SCALE,
    Inputs,
    bounds,
    constant_gate,
    mixed_gate,
    random_inputs,
    relative_error,
    run_chunk,
    run_recurrent,
)

from deltarl.kernels.gate import log_decay
from deltarl.kernels.kda import kda

EDGES = [5, 0, 16, 1, 33, 15, 17, 130, 31, 32, 2, 64, 0, 48, 47, 129]  # packed; around chunk edges, in no order
SHORT = [3, 16, 0, 37]
GATES = [-1e-6, -1e-2, -1.0, -3.75, -10.0, -100.0]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def assert_same_function(x: Inputs, lengths: list[int], dtype: torch.dtype) -> None:
    """Outputs and gradients of the chunkwise form in `dtype` against the recurrence in the same dtype."""
    results = []
    for run in (run_recurrent, run_chunk):
        inputs = x.to(dtype).with_grad()
        out, final = run(inputs, lengths)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype) for y in (out, final)]
        gradients = torch.autograd.grad((out * weights[0]).sum() + (final * weights[1]).sum(), inputs.tensors())
        results.append((out, final, *gradients))
    names = ["out", "final", "dq", "dk", "dv", "dg", "dbeta", "dstate"]
    for name, want, got in zip(names, *results, strict=True):
        assert got.dtype == dtype
        # A gate's gradient is a difference of terms as large as the output: where all is forgotten they cancel, and
        # what is left is their rounding.
        scale = results[0][0] if name == "dg" and want.norm() < 1 else want
        assert relative_error(got, want, scale) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunk_equals_recurrence_around_every_chunk_edge(dtype):
    assert_same_function(random_inputs(EDGES), EDGES, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("strength", GATES)
def test_chunk_equals_recurrence_for_any_gate_strength(strength, dtype):
    assert_same_function(random_inputs(SHORT, constant_gate(strength)), SHORT, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunk_equals_recurrence_for_strengths_mixed_within_a_chunk(dtype):
    assert_same_function(random_inputs(SHORT, mixed_gate(sum(SHORT))), SHORT, dtype)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("strength", [-1e-6, -100.0])
def test_chunk_equals_recurrence_at_the_ends_of_beta(beta, strength):
    assert_same_function(random_inputs(SHORT, constant_gate(strength), beta=beta), SHORT, torch.float64)


def test_beta_zero_only_forgets():
    x = random_inputs([20], beta=0.0)
    out, final = run_chunk(x, [20])
    decayed = x.g.sum(0).exp().unsqueeze(-1) * x.state[0]
    torch.testing.assert_close(final[0], decayed, rtol=1e-12, atol=1e-14)
    first = SCALE * torch.einsum("hk,hkv->hv", x.q[0] * x.g[0].exp(), x.state[0])
    torch.testing.assert_close(out[0], first, rtol=1e-12, atol=1e-14)


def test_beta_one_without_decay_stores_the_value_under_its_key():
    x = random_inputs([33], constant_gate(0.0), beta=1.0)
    x = replace(x, k=x.k / x.k.norm(dim=-1, keepdim=True))  # exactly unit length, unlike l2norm's
    _, final = run_chunk(x, [33])
    torch.testing.assert_close(torch.einsum("hk,hkv->hv", x.k[-1], final[0]), x.v[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("run", [run_recurrent, run_chunk])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("strength", [*GATES, None])
def test_results_are_finite_and_bounded_even_for_zero_keys(strength, dtype, run):
    """With |k| <= 1 and 0 <= beta <= 1 a step never lengthens the state by more than |v|."""
    length = 40
    gate = mixed_gate(length) if strength is None else constant_gate(strength)
    x = random_inputs([length], gate, beta=1.0)
    x.k[::3] = 0.0
    x = x.to(dtype).with_grad()
    out, final = run(x, [length])
    assert all(torch.isfinite(y).all() for y in torch.autograd.grad(out.sum() + final.sum(), x.tensors()))
    most = x.state[0].flatten(1).norm(dim=-1) + x.v.norm(dim=-1).cumsum(0)  # [T, H]
    assert (out.norm(dim=-1) <= SCALE * x.q.norm(dim=-1) * most * (1 + 1e-5)).all()
    assert (final[0].flatten(1).norm(dim=-1) <= most[-1] * (1 + 1e-5)).all()


@pytest.mark.parametrize("strength", [-0.3, -25.0])
@pytest.mark.parametrize(("run", "options"), [(run_recurrent, {}), (run_chunk, {"chunk_size": 4})])
def test_gradients_match_finite_differences(run, options, strength):
    lengths = [2, 0, 5]
    x = random_inputs(lengths, seed=3)
    x = Inputs(x.q[:, :1, :2], x.k[:, :1, :2], x.v[:, :1, :2], x.g[:, :1, :2], x.beta[:, :1], x.state[:, :1, :2, :2])
    x = replace(x, g=x.g + strength).with_grad()
    assert torch.autograd.gradcheck(lambda *tensors: run(Inputs(*tensors), lengths, **options), x.tensors())


@pytest.mark.parametrize("lower_bound", [None, -5.0])
@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
def test_gradients_through_the_gate_match_finite_differences(backend, lower_bound):
    lengths = [1, 18]
    x = random_inputs(lengths, seed=4)
    q, k, v, beta = (t.unsqueeze(0) for t in (x.q, x.k, x.v, x.beta))
    generator = torch.Generator().manual_seed(5)
    shapes = [(sum(lengths), HEADS, KEY_DIM), (1, 1, HEADS, 1), (HEADS * KEY_DIM,)]
    gate = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    def run(pre_activation, a_log, dt_bias):
        g = log_decay(pre_activation, a_log, dt_bias, lower_bound).unsqueeze(0)
        return kda(q, k, v, g, beta, cu_seqlens=bounds(lengths), output_final_state=True, backend=backend)

    assert torch.autograd.gradcheck(run, gate, fast_mode=True)
