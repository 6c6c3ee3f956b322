"""The pieces around the recurrence: gate, normalisation, convolution, chunk layout, and what `kda` refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kda_inputs import bounds, random_inputs

from deltarl.kernels.conv import short_conv, short_conv_step
from deltarl.kernels.gate import l2norm, log_decay
from deltarl.kernels.kda import kda
from deltarl.kernels.layout import ChunkLayout


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    """q, k, v, g, beta `[1, 20, H, *]`."""
    return [t.unsqueeze(0) for t in random_inputs([20]).tokens(slice(None))]


@pytest.mark.parametrize("bound", [None, -5.0, -0.5])
def test_log_decay_is_the_published_formula(bound):
    x, a_log, bias = torch.randn(9, 3, 4) * 5, torch.randn(1, 1, 3, 1), torch.randn(12)
    shifted = x.double().numpy() + bias.double().numpy().reshape(3, 4)
    rate = np.exp(a_log.double().numpy().reshape(3, 1))
    want = -rate * np.logaddexp(0, shifted) if bound is None else bound / (1 + np.exp(-rate * shifted))
    got = log_decay(x, a_log, bias, bound)
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=1e-30)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("bound", [None, -5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_decay_stays_finite_within_its_bound_and_above_bf16_precision(bound, dtype):
    x = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype).view(5, 1, 1)
    got = log_decay(x, torch.tensor([2.0]), torch.tensor([0.1]), bound)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(got).all()
    assert (got <= 0).all()
    assert (got.flatten().diff() <= 0).all()  # more input, more forgetting
    assert bound is None or (got >= bound).all()


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_a_lower_bound_that_bounds_nothing_is_refused(bound):
    with pytest.raises(ValueError, match="lower_bound must be below 0"):
        log_decay(torch.zeros(1, 1, 1), torch.zeros(1), torch.zeros(1), bound)


def test_l2norm_has_eps_inside_the_root():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-4, 4e-4]], dtype=torch.float64)
    want = x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(l2norm(x), want, rtol=1e-14, atol=0)


def test_short_conv_is_a_causal_depthwise_convolution():
    x, weight = torch.randn(30, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    want = F.silu(F.conv1d(F.pad(x.T, (3, 0)), weight.unsqueeze(1), groups=6)).T
    torch.testing.assert_close(short_conv(x, weight, torch.arange(30)), want, rtol=1e-12, atol=1e-14)


def test_short_conv_passes_the_gradient_check():
    x, weight = torch.randn(7, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    position = torch.tensor([0, 1, 2, 3, 0, 1, 0])
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: short_conv(a, b, position), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_step_gives_the_very_numbers_of_the_whole_sequence(dtype):
    batch, length, dim = 3, 9, 64  # whole vectors: SiLU rounds the odd elements at the end differently
    x, weight = torch.randn(batch, length, dim, dtype=dtype), torch.randn(dim, 4, dtype=dtype)
    whole = short_conv(x.flatten(0, 1), weight, torch.arange(length).repeat(batch)).view(batch, length, dim)
    window = torch.zeros(batch, 3, dim, dtype=dtype)
    for t in range(length):
        assert torch.equal(short_conv_step(x[:, t], weight, window), whole[:, t])
    assert torch.equal(window, x[:, -3:])


@pytest.mark.parametrize("lengths", [[1], [4, 4], [0, 3], [9, 0, 4, 5, 1, 13], [2, 7, 7, 7]])
def test_layout_places_every_token_once_and_pads_with_zeros(lengths):
    total, cu_seqlens = sum(lengths), bounds(lengths)
    layout = ChunkLayout.build(cu_seqlens, 4)
    assert layout.num_chunks == sum(-(-n // 4) for n in lengths)
    assert list(layout.active) == sorted(layout.active, reverse=True)
    x = torch.arange(1.0, total * 6 + 1).view(total, 2, 3).requires_grad_()
    chunks = layout.to_chunks(x)
    assert chunks.shape == (layout.num_chunks, 2, 4, 3)
    assert int((chunks != 0).sum()) == x.numel()
    assert torch.equal(layout.from_chunks(chunks), x)
    (gradient,) = torch.autograd.grad((layout.from_chunks(chunks * 2) * x.detach()).sum(), x)
    assert torch.equal(gradient, 2 * x)
    for n, length in enumerate(lengths):
        if length:
            end = chunks[layout.last_chunk[n], :, layout.tail[n] - 1]
            assert torch.equal(end, x[cu_seqlens[n + 1] - 1])


@pytest.mark.parametrize("cu_seqlens", [[0], [1, 5], [0, 5, 3], []])
def test_bounds_that_are_no_bounds_are_refused(cu_seqlens):
    with pytest.raises(ValueError, match="cu_seqlens must start at 0 and never decrease"):
        ChunkLayout.build(torch.tensor(cu_seqlens, dtype=torch.int64), 16)


@pytest.mark.parametrize("name", ["k", "v", "g", "beta"])
def test_shapes_that_do_not_fit_are_refused_by_name(tokens, name):
    i = ["q", "k", "v", "g", "beta"].index(name)
    tokens[i] = tokens[i][:, :-1]
    with pytest.raises(ValueError, match=rf"{name} \(1, 19, 2"):
        kda(*tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 19])}, "must end at the number of tokens 20"),
        ({"cu_seqlens": torch.tensor([2, 20])}, "must start at 0"),
        ({"cu_seqlens": torch.tensor([0, 12, 8, 20])}, "never decrease"),
        ({"initial_state": torch.zeros(1, 2, 5, 6)}, r"\[N,H,K,V\] = \(1, 2, 6, 5\)"),
        ({"backend": "cuda"}, "unknown KDA backend 'cuda'; choose one of triton, chunk, recurrent"),
    ],
)
def test_bad_options_are_refused_with_the_remedy(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        kda(*tokens, **options)


def test_packing_needs_a_batch_of_one(tokens):
    double = [torch.cat([t, t]) for t in tokens]
    with pytest.raises(ValueError, match="need B = 1, got B = 2"):
        kda(*double, cu_seqlens=torch.tensor([0, 40]))


def test_no_tokens_at_all_are_refused(tokens):
    with pytest.raises(ValueError, match="at least one token"):
        kda(*(t[:, :0] for t in tokens))


def test_the_environment_chooses_the_backend_unless_the_caller_does(tokens, monkeypatch):
    results = {name: kda(*tokens, backend=name)[0] for name in ("chunk", "recurrent")}
    assert not torch.equal(results["chunk"], results["recurrent"])  # they round differently: that tells them apart
    assert torch.equal(kda(*tokens)[0], results["chunk"])
    monkeypatch.setenv("DELTARL_KDA_BACKEND", "recurrent")
    assert torch.equal(kda(*tokens)[0], results["recurrent"])
    assert torch.equal(kda(*tokens, backend="chunk")[0], results["chunk"])
    monkeypatch.setenv("DELTARL_KDA_BACKEND", "fast")
    with pytest.raises(ValueError, match="unknown KDA backend 'fast'"):
        kda(*tokens)


def test_batch_scale_normalisation_and_dtypes(tokens):
    batch = [torch.cat([t, t.flip(1)]) for t in tokens]
    out, state = kda(*batch, output_final_state=True)
    assert state is not None
    for i in range(2):
        alone, alone_state = kda(*(t[i : i + 1] for t in batch), output_final_state=True)
        torch.testing.assert_close(out[i], alone[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state[i], alone_state[0], rtol=1e-12, atol=1e-14)
    assert kda(*tokens)[1] is None
    q, k, *rest = tokens
    torch.testing.assert_close(kda(q, k, *rest, scale=1.0)[0], kda(q, k, *rest)[0] * 6**0.5)
    normalised, _ = kda(q * 7, k * 3, *rest, use_qk_l2norm=True)
    torch.testing.assert_close(normalised, kda(q, k, *rest)[0], rtol=1e-4, atol=1e-5)
    low, low_state = kda(*(t.bfloat16() for t in tokens), output_final_state=True)
    assert low.dtype == torch.bfloat16
    assert low_state is not None
    assert low_state.dtype == torch.float64  # on a CPU the core computes in fp64
