"""Log-probabilities without the logits are those of the table of logits, in a fraction of its memory."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deltarl.kernels import logprobs as module
from deltarl.kernels.logprobs import token_logprobs
from deltarl.rollout.sampler import sample

TEMPERATURE = 0.7

# The table kept, a block of whole rows at a time, and blocks of the vocabulary.
WAYS = pytest.mark.parametrize("blocks", [None, (16, 1000), (17, 32)], ids=["table", "rows", "blocks"])


def inputs(n: int, vocab: int, dim: int = 8, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0):
    """hidden, weight (with gradient), target; logits have a standard deviation of `scale`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, dim, generator=generator) * scale
    weight = torch.randn(vocab, dim, generator=generator) * dim**-0.5
    target = torch.randint(0, vocab, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def table(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What `token_logprobs` stands for, by way of all logits and in their dtype's precision."""
    logp = torch.log_softmax((hidden @ weight.T) / temperature, -1)
    return logp.gather(1, target.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(-1)


def with_gradients(function, hidden: Tensor, weight: Tensor, *args, **kwargs) -> tuple[Tensor, ...]:
    """Both results, and the gradients of a sum over them with uneven weights."""
    results = function(hidden, weight, *args, **kwargs)
    a, b = torch.linspace(-1, 2, len(hidden)), torch.linspace(1, -3, len(hidden))
    loss = (results[0].double() * a).sum() + (results[1].double() * b).sum()
    return *(r.detach() for r in results), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("blocks", [None, (4, 13), (3, 4), (5, 1)], ids=["table", "rows", "blocks", "single"])
def test_gradients_are_those_of_finite_differences(blocks):
    hidden, weight, target = inputs(11, 13, 5, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, target, TEMPERATURE, blocks=blocks), (hidden, weight)
    )


@pytest.mark.parametrize("vocab", [1, 2, 31, 32, 33, 63, 64, 65, 100])
@WAYS
def test_values_and_gradients_are_those_of_the_table(blocks, vocab):
    given = inputs(41, vocab, dtype=torch.float64, scale=3.0)
    given[2][:2] = torch.tensor([0, vocab - 1])
    got = with_gradients(token_logprobs, *given, TEMPERATURE, blocks=blocks)
    for ours, reference in zip(got, with_gradients(table, *given, TEMPERATURE), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@WAYS
@pytest.mark.parametrize("largest_last", [False, True])
def test_large_logits_neither_overflow_nor_lose_digits(blocks, largest_last):
    hidden, weight, target = inputs(40, 100, scale=1.0)
    with torch.no_grad():  # logits k/8 + 3000: exact in fp32, so that what is lost is lost in the sums
        hidden.zero_()[:, :2] = torch.tensor([3000.0, 0.125])
        weight.zero_()[:, 0] = 1.0
        weight[:, 1] = torch.arange(100.0) if largest_last else torch.arange(100.0, 0.0, -1.0)
    got = with_gradients(token_logprobs, hidden, weight, target, blocks=blocks)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    reference = with_gradients(table, *exact, target)
    for ours, theirs, atol in zip(got, reference, (1e-5, 1e-5, 1e-3, 1e-2), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=atol)


@WAYS
def test_a_certain_token_has_no_entropy_and_no_gradient(blocks):
    hidden, weight = torch.full((40, 2), 1e3, requires_grad=True), torch.zeros(50, 2)
    weight[3] = 1.0
    logprobs, entropy = token_logprobs(hidden, weight, torch.full((40,), 3), blocks=blocks)
    assert logprobs.abs().max() == 0
    assert entropy.abs().max() == 0
    assert torch.autograd.grad(logprobs.sum() + entropy.sum(), hidden)[0].abs().max() == 0


@WAYS
def test_16_bit_inputs_have_logits_of_16_bits_and_sums_of_32(blocks):
    hidden, weight, target = inputs(50, 300, dtype=torch.bfloat16, scale=2.0)
    got = with_gradients(token_logprobs, hidden, weight, target, TEMPERATURE, blocks=blocks)
    assert [x.dtype for x in got] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    logp = torch.log_softmax((hidden @ weight.T).float() / TEMPERATURE, -1)
    torch.testing.assert_close(got[0], logp.gather(1, target.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(got[1], -(logp.exp() * logp).sum(-1))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    for ours, theirs in zip(got[2:], with_gradients(table, *exact, target, TEMPERATURE)[2:], strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("vocab", [24, 1000, 163_840])
@pytest.mark.parametrize("n", [3, 16, 100])
def test_numbers_are_the_samplers_to_the_bit(n, vocab, monkeypatch):
    monkeypatch.setitem(module.ENTRIES, "torch", 20 * vocab)  # blocks of 20 rows or more
    hidden, weight, _ = inputs(n, vocab, scale=2.0)
    filled = torch.nn.functional.pad(hidden, (0, 0, 0, max(0, 16 - n)))  # as the sampler fills its batch
    logits = torch.nn.functional.linear(filled, weight)[:n].detach()
    draw = sample(logits, torch.full((n,), TEMPERATURE), torch.linspace(0, 0.999, n, dtype=torch.float64))
    assert torch.equal(token_logprobs(hidden, weight, draw.token, TEMPERATURE)[0], draw.logprob)


@WAYS
def test_a_row_does_not_depend_on_the_others(blocks):
    hidden, weight, target = inputs(70, 100)
    together = token_logprobs(hidden, weight, target, blocks=blocks)
    apart = token_logprobs(hidden[20:53], weight, target[20:53], blocks=blocks)
    assert all(torch.equal(a[20:53], b) for a, b in zip(together, apart, strict=True))


class LargestTensor(TorchDispatchMode):
    """Most elements of any tensor an operation returns, but for the output matrix and what has its size."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.ignored, self.elements = weight.numel(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and x.numel() != self.ignored:
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_is_larger_than_a_block():
    hidden, weight, target = inputs(512, 163_840, 64)
    with LargestTensor(weight) as largest:
        with_gradients(token_logprobs, hidden, weight, target)
    assert 0 < largest.elements < 2 * module.ENTRIES["torch"] < 512 * 163_840 / 9
    with LargestTensor(weight) as largest, torch.no_grad():
        table(hidden[:70], weight, target[:70])
    assert largest.elements == 70 * 163_840  # the measure sees a table of logits


@WAYS
def test_either_input_may_do_without_gradient(blocks):
    hidden, weight, target = inputs(40, 100)
    fixed_hidden, fixed_weight = hidden.detach(), weight.detach()
    both = torch.autograd.grad(token_logprobs(hidden, weight, target, blocks=blocks)[0].sum(), (hidden, weight))
    (one,) = torch.autograd.grad(token_logprobs(hidden, fixed_weight, target, blocks=blocks)[0].sum(), hidden)
    (other,) = torch.autograd.grad(token_logprobs(fixed_hidden, weight, target, blocks=blocks)[0].sum(), weight)
    assert torch.equal(one, both[0])
    assert torch.equal(other, both[1])
    assert not any(x.requires_grad for x in token_logprobs(fixed_hidden, fixed_weight, target, blocks=blocks))


@WAYS
def test_no_rows_are_fine(blocks):
    got = with_gradients(token_logprobs, *inputs(0, 100), blocks=blocks)
    assert [tuple(x.shape) for x in got] == [(0,), (0,), (0, 8), (100, 8)]
    assert got[3].abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(5, 7)}, r"hidden \(5, 7\), weight \(10, 8\), target \(5,\)"),
        ({"hidden": torch.zeros(1, 5, 8)}, r"got hidden \(1, 5, 8\)"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target \(4,\)"),
        ({"weight": torch.zeros(0, 8)}, r"weight \(0, 8\)"),
        ({"weight": torch.zeros(10, 8, dtype=torch.bfloat16)}, "same float dtype.*torch.bfloat16"),
        ({"target": torch.zeros(5)}, "target int64; got .*torch.float32$"),
        ({"target": torch.tensor([0, 1, 2, 3, 10])}, "outside the vocabulary 0..9"),
        ({"target": torch.tensor([0, 1, -100, 3, 4])}, "outside the vocabulary 0..9"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; choose one of torch, triton"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"hidden": torch.zeros(5, 8), "weight": torch.zeros(10, 8), "target": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        token_logprobs(**given | change)
