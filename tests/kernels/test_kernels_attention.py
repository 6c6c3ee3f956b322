"""Packed attention is each sequence's own causal attention, values and gradients."""

import pytest
import torch
from torch import Tensor

from deltarl.kernels.attention import _backward_in_order, packed_attention
from deltarl.kernels.layout import ChunkLayout

LENGTHS = [7, 33, 0, 16, 1, 50]
HEADS, KEY, VALUE, SCALE = 3, 12, 10, 0.3
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """q, k, v of all tokens and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    widths = (KEY, KEY, VALUE, VALUE)
    drawn = [torch.randn(sum(LENGTHS), HEADS, w, generator=generator, dtype=torch.float64) for w in widths]
    return tuple(t.to(device, dtype) for t in drawn)


def run(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """Output and gradients of q, k, v."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    bounds = torch.tensor([0, *lengths], device=q.device).cumsum(0)
    out = packed_attention(*leaves, bounds, ChunkLayout.build(bounds, -(-max(lengths) // 16) * 16), SCALE)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def reference(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """The same, in fp64, one sequence after the other."""
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    outs = []
    for a, b, c in zip(*(t.split(LENGTHS) for t in leaves), strict=True):
        future = torch.ones(len(a), len(a), dtype=torch.bool, device=q.device).triu(1)
        score = torch.einsum("shd,thd->hst", a, b) * SCALE
        outs.append(torch.einsum("hst,thd->shd", score.masked_fill(future, float("-inf")).softmax(-1), c))
    out = torch.cat(outs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_values_and_gradients_are_those_of_each_sequence(device, dtype, tolerance):
    arguments = inputs(dtype, device)
    for got, want in zip(run(*arguments, LENGTHS), reference(*arguments), strict=True):
        assert got.dtype == dtype
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_packed_equals_alone(device):
    """On a CPU to a rounding of fp64, which fp32 does not see. Flash attention's gradients depend on how many
    sequences there are."""
    dtype, tolerance, of_gradients = torch.float64, 1e-15, 1e-12
    if device.type == "cuda":
        dtype, tolerance, of_gradients = torch.bfloat16, 0.0, 2e-2
    arguments = inputs(dtype, device)
    together = run(*arguments, LENGTHS)
    start = 0
    for length in LENGTHS:
        mine = slice(start, start + length)
        start += length
        if length:
            alone = run(*(t[mine] for t in arguments), [length])
            torch.testing.assert_close(alone[0], together[0][mine], rtol=tolerance, atol=tolerance)
            for a, b in zip(alone[1:], together[1:], strict=True):
                torch.testing.assert_close(a, b[mine], rtol=of_gradients, atol=of_gradients)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_token_sees_neither_later_ones_nor_other_sequences(device):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v, grad = inputs(dtype, device)
    before = run(q, k, v, grad, LENGTHS)[0]
    t = LENGTHS[0] + 20  # in the second sequence
    k[t:] += 1
    v[t:] += 1
    k[: LENGTHS[0]] -= 1
    v[: LENGTHS[0]] -= 1
    after = run(q, k, v, grad, LENGTHS)[0]
    assert torch.equal(after[LENGTHS[0] : t], before[LENGTHS[0] : t])
    assert not torch.equal(after[t], before[t])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lengths", [[512] * 8, [3000, 17, 1100]])
def test_gradients_on_a_gpu_are_the_same_bits_each_time_and_torch_is_left_as_it_was(lengths):
    """Long sequences, whose gradient of q several blocks of keys add to: some of ten differ in any other order."""
    drawn = [torch.randn(sum(lengths), HEADS, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    first = run(*drawn, lengths)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(run(*drawn, lengths), first, strict=True))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_order_is_fixed_for_the_one_backward_alone():
    modes = []

    def mode() -> tuple[bool, bool, bool]:
        """Enabled, no more than a warning, fresh memory filled."""
        enabled, warns = torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled
        return enabled(), warns(), torch.utils.deterministic.fill_uninitialized_memory

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            modes.append(mode())
            return grad

    x = torch.ones(3, requires_grad=True)
    inner = Seen.apply(x)
    ordered = Seen.apply(inner)
    _backward_in_order(ordered.grad_fn)
    Seen.apply(ordered).sum().backward()
    # The backward pass of flash attention takes a mode that only warns for none.
    assert modes == [(False, False, True), (True, False, False), (False, False, True)]
    assert mode() == (False, False, True)
