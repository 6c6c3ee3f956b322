"""The gated norm kernels against an fp64 reference, and the promises they make to the bit."""

import pytest
import torch
from torch import Tensor

from deltarl.kernels.gpu import norm
from deltarl.kernels.gpu.norm import gated_norm

EPS = 1e-5
# Of a row's largest number. Half a step of the format, and the rounding of a few fp32 operations.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def inputs(tokens: int, heads: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, gate, weight and the gradient of the output, rows of x from tiny to large."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(tokens, heads, dim) * 10 ** (normal(tokens, heads, 1) * 1.5)
    return tuple(t.to(device) for t in (x, normal(tokens, heads, dim) * 3, normal(dim), normal(tokens, heads, dim)))


def run(x: Tensor, gate: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output and the three gradients."""
    leaves = tuple(t.detach().requires_grad_() for t in (x, gate, weight))
    out = gated_norm(*leaves, EPS)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Row by row, because the gradient of a tiny row is huge."""
    assert got.shape == want.shape
    error = (got.double() - want).abs().amax(-1)
    assert bool((error <= tolerance * want.abs().amax(-1)).all())


@pytest.mark.parametrize(
    ("dim", "x_dtype", "gate_dtype", "weight_dtype"),
    [
        (16, torch.float32, torch.float32, torch.float32),
        (32, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (64, torch.float32, torch.bfloat16, torch.float32),
        (128, torch.float32, torch.float32, torch.float32),
        (128, torch.bfloat16, torch.bfloat16, torch.float32),
        (256, torch.float16, torch.float16, torch.float16),
    ],
)
def test_values_and_gradients_are_those_of_an_fp64_reference(dim, x_dtype, gate_dtype, weight_dtype, device):
    x, gate, weight, grad = inputs(21, 3, dim, device)
    x, gate, weight, grad = x.to(x_dtype), gate.to(gate_dtype), weight.to(weight_dtype), grad.to(gate_dtype)
    leaves = [t.double().requires_grad_() for t in (x, gate, weight)]
    u, g, w = leaves
    want = w * u / (u.square().mean(-1, keepdim=True) + EPS).sqrt() * g.sigmoid()
    want_grads = torch.autograd.grad(want, leaves, grad.double())
    got = run(x, gate, weight, grad)
    dtypes = (gate_dtype, x_dtype, gate_dtype, weight_dtype)
    for result, expected, dtype in zip(got, (want.detach(), *want_grads), dtypes, strict=True):
        assert result.dtype == dtype
        assert_near(result, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gets_the_very_numbers_it_gets_alone(dtype, device):
    x, gate, weight, grad = (t.to(dtype) for t in inputs(37, 3, 64, device))
    together = run(x, gate, weight, grad)[:3]
    for t in (0, 1, 20, 36):
        alone = run(x[t : t + 1], gate[t : t + 1], weight, grad[t : t + 1])[:3]
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_repeats_itself_to_the_bit(dtype, device):
    arguments = [t.to(dtype) for t in inputs(30, 2, 128, device)]
    assert all(torch.equal(a, b) for a, b in zip(run(*arguments), run(*arguments), strict=True))


def test_many_rows_keep_the_partial_sums_few(device, monkeypatch):
    arguments = inputs(40, 3, 128, device)  # 15 tiles
    want = run(*arguments)
    monkeypatch.setattr(norm, "MAX_PARTIALS", 4)
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kw: made.append(shape) or empty(*shape, **kw))
    few = run(*arguments)
    assert made == [(4, 128)]
    for a, b in zip(few[:3], want[:3], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(few[3], want[3])


def test_inputs_may_be_slices_of_wider_tensors(device):
    x, gate, weight, grad = inputs(9, 2, 32, device)
    apart = [torch.cat([t, t * 5], -1)[..., :32] for t in (x, gate, grad)]
    got = run(apart[0], apart[1], weight, apart[2])
    assert all(torch.equal(a, b) for a, b in zip(got, run(x, gate, weight, grad), strict=True))


def test_no_tokens_at_all(device):
    x, gate, weight, grad = inputs(0, 2, 32, device)
    out, grad_x, grad_gate, grad_weight = run(x, gate, weight, grad)
    assert out.shape == grad_x.shape == grad_gate.shape == (0, 2, 32)
    assert torch.equal(grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("dim", [1, 8, 48, 512])
def test_head_sizes_it_has_no_tile_for_are_refused(dim):
    x = torch.zeros(4, 2, dim)
    with pytest.raises(ValueError, match=rf"x \(4, 2, {dim}\) must end in a power of two from 16 to 256"):
        gated_norm(x, x, torch.ones(dim), EPS)


def test_shapes_that_do_not_fit_are_refused():
    x = torch.zeros(4, 2, 32)
    with pytest.raises(ValueError, match=r"gate \(4, 1, 32\) must have the shape of x"):
        gated_norm(x, x[:, :1], torch.ones(32), EPS)
    with pytest.raises(ValueError, match=r"weight \(64,\) must be \[V\] = \(32,\)"):
        gated_norm(x, x, torch.ones(64), EPS)
