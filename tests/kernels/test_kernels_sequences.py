"""Sequences do not see each other, tokens do not see later ones, and a sequence may be computed in any pieces."""

import pytest
import torch
from kda_inputs import (
    Inputs,
    bounds,
    constant_gate,
    mixed_gate,
    random_inputs,
    relative_error,
    run_chunk,
    run_prefill,
    run_recurrent,
)
from torch import Tensor

from deltarl.kernels.conv import last_inputs, short_conv
from deltarl.kernels.decode import DecodeState, decode_kda
from deltarl.kernels.kda import kda

LENGTHS = [7, 33, 0, 16, 1, 50]
RUNS = [run_recurrent, run_chunk]


def sequence(x: Inputs, lengths: list[int], n: int) -> Inputs:
    start = sum(lengths[:n])
    return Inputs(*x.tokens(slice(start, start + lengths[n])), x.state[n : n + 1])


def gates(tokens: int) -> dict[str, Tensor]:
    """Weak everywhere; such that a chunk's decay cannot be undone in fp32, nor in fp64; all of it within one chunk."""
    constant = {"weak": -0.05, "strong": -9.0, "extreme": -30.0}
    return {name: constant_gate(strength) for name, strength in constant.items()} | {"mixed": mixed_gate(tokens)}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("gate", ["weak", "strong", "extreme", "mixed"])
def test_packed_equals_alone(gate, run):
    x = random_inputs(LENGTHS, gates(sum(LENGTHS))[gate])
    out, final = run(x, LENGTHS)
    for n, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:n])
        alone_out, alone_final = run(sequence(x, LENGTHS, n), [length])
        torch.testing.assert_close(out[start : start + length], alone_out, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(final[n], alone_final[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("run", RUNS)
def test_no_gradient_crosses_a_sequence_bound(run):
    x = random_inputs(LENGTHS).with_grad()
    out, final = run(x, LENGTHS)
    mine = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    *tokens, state = torch.autograd.grad(out[mine].sum() + final[1].sum(), x.tensors())
    for gradient in tokens:
        assert gradient[mine].abs().sum() > 0
        assert gradient[: mine.start].abs().sum() == 0
        assert gradient[mine.stop :].abs().sum() == 0
    assert [n for n in range(len(LENGTHS)) if state[n].abs().sum() > 0] == [1]


def test_a_new_sequence_starts_from_its_own_state_or_from_zero():
    x = random_inputs([20, 20])
    q, k, v, g, beta = (t.unsqueeze(0) for t in x.tokens(slice(None)))
    cu_seqlens = bounds([20, 20])
    zeros, _ = kda(q, k, v, g, beta, cu_seqlens=cu_seqlens)
    second, _ = kda(q[:, 20:], k[:, 20:], v[:, 20:], g[:, 20:], beta[:, 20:])
    torch.testing.assert_close(zeros[:, 20:], second, rtol=1e-12, atol=1e-14)
    started, _ = kda(q, k, v, g, beta, cu_seqlens=cu_seqlens, initial_state=x.state)
    assert (started - zeros)[:, 20:].abs().max() > 1e-3


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", ["weak", "strong", "extreme", "mixed"])
def test_nothing_before_a_changed_token_changes_by_a_bit(gate, dtype, run):
    length = 52
    x = random_inputs([length], gates(length)[gate]).to(dtype)
    other = random_inputs([length], seed=9).to(dtype)
    before, _ = run(x, [length])
    for t in (0, 1, 7, 15, 16, 30, 33, 51):
        for decay in (-1e-4, -300.0):  # weakest, and beyond anything that can be undone
            changed = Inputs(*(y.clone() for y in x.tensors()))
            for mine, new in zip(changed.tensors()[:-1], other.tensors()[:-1], strict=True):
                mine[t] = new[t]
            changed.g[t] = decay
            after, _ = run(changed, [length])
            assert torch.equal(before[:t], after[:t]), (t, decay)
            assert not torch.equal(before[t], after[t])


@pytest.mark.parametrize("gate", ["weak", "strong", "extreme", "mixed"])
def test_a_longer_sequence_agrees_with_its_prefix(gate):
    x = random_inputs([70], gates(70)[gate])
    whole, _ = run_chunk(x, [70])
    for length in (1, 15, 16, 17, 32, 63):
        prefix, _ = run_chunk(Inputs(*x.tokens(slice(length)), x.state), [length])
        torch.testing.assert_close(prefix, whole[:length], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
@pytest.mark.parametrize("cut", [1, 16, 23, 32, 47])
def test_two_calls_chained_by_the_state_equal_one(cut, backend):
    x = random_inputs([48], mixed_gate(48))
    tokens = [t.unsqueeze(0) for t in x.tokens(slice(None))]
    options = {"backend": backend, "output_final_state": True}
    whole, whole_state = kda(*tokens, initial_state=x.state, **options)
    first, state = kda(*(t[:, :cut] for t in tokens), initial_state=x.state, **options)
    second, state = kda(*(t[:, cut:] for t in tokens), initial_state=state, **options)
    assert relative_error(torch.cat([first, second], 1), whole) < 1e-12
    assert relative_error(state, whole_state) < 1e-12


@pytest.mark.parametrize("gate", ["weak", "strong", "extreme", "mixed"])
def test_decode_continues_a_prefill_of_any_length(gate):
    """Prompts of 0..39 tokens and an untouched row, all in one batch, each decoded 36 tokens on."""
    prompts, steps = [*range(40)], 36
    full = [p + steps for p in prompts]
    x = random_inputs(full, gates(sum(full))[gate])
    want, _ = run_chunk(x, full)
    starts = bounds(full)[:-1]
    prompt_rows = torch.cat([torch.arange(s, s + p) for s, p in zip(starts.tolist(), prompts, strict=True)])
    _, buffer = run_prefill(Inputs(*(t[prompt_rows] for t in x.tensors()[:-1]), x.state), prompts)

    heads, key_dim, value_dim = x.state.shape[1:]
    cache = DecodeState.empty(len(prompts) + 1, heads, key_dim, value_dim, torch.device("cpu"))
    cache.load(torch.arange(len(prompts)), buffer)
    cache.state[-1] = x.state[0]  # the same as a prefill of nothing
    lengths = torch.tensor([*prompts, 0])
    starts = torch.cat([starts, starts[:1]])
    for _ in range(steps):
        q, k, v, g, beta = (t[starts + lengths] for t in x.tensors()[:-1])
        got = decode_kda(q, k, v, g, beta, key_dim**-0.5, cache, lengths % 16)
        expected = want[starts + lengths]
        error = (got - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        assert error.max() < 1e-9
        lengths += 1


def test_convolution_window_is_reset_at_every_sequence():
    lengths = [5, 0, 1, 2, 9]
    torch.manual_seed(0)
    x = torch.randn(sum(lengths), 6, requires_grad=True)
    weight = torch.randn(6, 4)
    cu_seqlens = bounds(lengths)
    position = torch.cat([torch.arange(n) for n in lengths])
    packed = short_conv(x, weight, position)
    for start, length in zip(cu_seqlens.tolist(), lengths, strict=False):
        rows = slice(start, start + length)
        torch.testing.assert_close(packed[rows], short_conv(x[rows], weight, torch.arange(length)))
    (gradient,) = torch.autograd.grad(packed[-9:].sum(), x)
    assert gradient[:-9].abs().sum() == 0
    windows = last_inputs(x, cu_seqlens, 4)
    for n, (start, length) in enumerate(zip(cu_seqlens.tolist(), lengths, strict=False)):
        own = x[start : start + length][-3:]
        assert torch.equal(windows[n], torch.cat([x.new_zeros(3 - len(own), 6), own]))
