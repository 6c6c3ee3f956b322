"""What the chunkwise form leaves out, splits or overwrites does not show in its results."""

import pytest
import torch
from kda_inputs import (
    SCALE,
    Inputs,
    bounds,
    constant_gate,
    mixed_gate,
    random_inputs,
    relative_error,
    run_chunk,
)
from torch import Tensor

from deltarl.kernels import chunk
from deltarl.kernels.chunk import CHUNK_SIZE, chunk_kda
from deltarl.kernels.decode import DecodeState, decode_kda
from deltarl.kernels.gate import l2norm
from deltarl.kernels.kda import kda
from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.precision import without_sampler

LENGTHS = [7, 33, 0, 16, 1, 50, 0, 32]
EQUAL = [32] * 6


def results(x: Inputs, lengths: list[int]) -> list[Tensor]:
    """Output, final state, and every gradient of a sum of both."""
    x = x.with_grad()
    out, final = run_chunk(x, lengths)
    return [out, final, *torch.autograd.grad(out.sin().sum() + final.cos().sum(), x.tensors())]


@pytest.mark.parametrize("lengths", [LENGTHS, EQUAL])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_in_groups_gives_the_very_numbers_of_one_in_one_piece(lengths, dtype, monkeypatch):
    x = random_inputs(lengths, mixed_gate(sum(lengths))).to(dtype)
    whole = results(x, lengths)
    monkeypatch.setattr(chunk, "GROUP_BYTES", 1)
    for sequences in (1, 2):
        monkeypatch.setattr(chunk, "STEP_BYTES", sequences * x.q[0].nbytes)
        assert all(torch.equal(a, b) for a, b in zip(whole, results(x, lengths), strict=True))


def test_groups_are_consecutive_and_large_enough():
    layout = ChunkLayout.build(bounds(LENGTHS), CHUNK_SIZE)
    assert [g.lengths for g in layout.groups(least=1, enough=1)] == [(7,), (33,), (0, 16), (1,), (50,), (0, 32)]
    assert [g.lengths for g in layout.groups(least=2, enough=20)] == [(7, 33), (0, 16, 1, 50), (0, 32)]
    assert [g.lengths for g in layout.groups(least=3, enough=80)] == [tuple(LENGTHS)]
    assert layout.groups(least=9, enough=1) == (layout,)
    assert layout.groups(least=2, enough=20)[1] is layout.groups(least=2, enough=20)[1]  # built once


@pytest.mark.parametrize("strength", [-0.1, -30.0])
def test_states_not_given_or_not_asked_for_change_nothing(strength):
    x = random_inputs(LENGTHS, constant_gate(strength)).with_grad()
    layout = ChunkLayout.build(bounds(LENGTHS), CHUNK_SIZE)
    tokens, zeros = x.tensors()[:-1], torch.zeros_like(x.state, requires_grad=True)
    found = []
    for state in (zeros, None):
        for final in (True, False):
            out, *_ = chunk_kda(*tokens, SCALE, state, layout, output_final_state=final)
            found.append([out, *torch.autograd.grad(out.sin().sum(), tokens)])
    for with_final, without in (found[:2], found[2:]):
        assert all(torch.equal(a, b) for a, b in zip(with_final, without, strict=True))
    for given, missing in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(missing, given, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("strength", [-0.1, -30.0])
def test_the_gradient_of_a_sum_is_the_sum_of_the_gradients(strength):
    """Of the output alone and the final state alone; and a second backward pass finds everything as the first did."""
    x = random_inputs(LENGTHS, constant_gate(strength)).with_grad()
    out, final = run_chunk(x, LENGTHS)
    both = torch.autograd.grad(out.sum() + final.sum(), x.tensors(), retain_graph=True)
    again = torch.autograd.grad(out.sum() + final.sum(), x.tensors(), retain_graph=True)
    ones = [torch.autograd.grad(y.sum(), x.tensors(), retain_graph=True) for y in (out, final)]
    for i, gradient in enumerate(both):
        assert torch.equal(gradient, again[i])
        # What a gate's gradient is the difference of: see test_kernels_equivalence.
        assert relative_error(ones[0][i] + ones[1][i], gradient, out if gradient.norm() < 1 else None) < 1e-12


@pytest.mark.parametrize("strength", [-0.1, -30.0])
def test_gradients_through_the_normalisation_of_q_and_k(strength):
    x = random_inputs([5, 32, 18], constant_gate(strength), seed=2)
    x.k[3] = 0.0
    found = []
    for backend in ("recurrent", "chunk"):
        tokens = [t.unsqueeze(0).requires_grad_() for t in (x.q * 3, x.k * 0.2, x.v, x.g, x.beta)]
        out, _ = kda(*tokens, use_qk_l2norm=True, cu_seqlens=bounds([5, 32, 18]), backend=backend)
        found.append([out, *torch.autograd.grad(out.sin().sum(), tokens)])
    for want, got in zip(*found, strict=True):
        assert relative_error(got, want, found[0][0] if want.norm() < 1 else None) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_inputs_and_autocast_leave_the_core_alone(dtype):
    """The core computes as it does for the same numbers in fp32; only what goes out is rounded."""
    tokens = [t.unsqueeze(0).to(dtype).requires_grad_() for t in random_inputs([40]).tokens(slice(None))]
    exact = [t.detach().float().requires_grad_() for t in tokens]
    with without_sampler():
        want = kda(*exact, use_qk_l2norm=True)[0]
        with torch.autocast("cpu", torch.bfloat16):
            got = kda(*tokens, use_qk_l2norm=True)[0]
            gradients = torch.autograd.grad(got.float().sum(), tokens)
    assert torch.equal(got, want.to(dtype))
    for gradient, expected in zip(gradients, torch.autograd.grad(want.sum(), exact), strict=True):
        assert torch.equal(gradient, expected.to(dtype))


@pytest.mark.parametrize("strength", [-0.1, -30.0])
def test_decode_normalises_as_the_chunk_does_in_fp32_too(strength):
    x = random_inputs([40], constant_gate(strength)).to(torch.float32)
    q, k, v, g, beta = x.q * 3, x.k * 0.2, x.v, x.g, x.beta
    with without_sampler():
        want = kda(*(t.unsqueeze(0) for t in (q, k, v, g, beta)), use_qk_l2norm=True)[0].squeeze(0)
        cache = DecodeState.empty(1, q.shape[1], q.shape[2], v.shape[2], torch.device("cpu"))
        for t in range(40):
            now, offset = slice(t, t + 1), torch.tensor([t % CHUNK_SIZE])
            got = decode_kda(q[now], k[now], v[now], g[now], beta[now], SCALE, cache, offset, use_qk_l2norm=True)
            assert relative_error(got, want[now]) < 1e-5
    assert relative_error(l2norm(k).norm(dim=-1), torch.ones(40, 2)) < 1e-4
