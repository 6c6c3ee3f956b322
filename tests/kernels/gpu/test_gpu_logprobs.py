"""The fused passes over a block of logits do what the PyTorch ones do."""

import pytest
import torch
from torch import Tensor

from deltarl.kernels import logprobs as plain
from deltarl.kernels.gpu import logprobs as fused
from deltarl.kernels.logprobs import log_softmax, token_logprobs

TEMPERATURE = 0.7
WIDTHS = [1, 31, 32, 33, 100]


def block(device: torch.device, rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits, and tokens before, in and after the block."""
    generator = torch.Generator().manual_seed(rows + width)
    logits = torch.randn(rows, width, generator=generator) * 4
    target = torch.randint(-width, 2 * width, (rows,), generator=generator)
    target[:3] = torch.tensor([-1, width - 1, width])
    return logits.to(device, dtype), target.to(device)


def fresh_stats(rows: int, device: torch.device) -> Tensor:
    low = torch.finfo(torch.float32).min
    return torch.tensor([low, 0.0, 0.0, float("nan")], device=device).unsqueeze(1).repeat(1, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_statistics_of_several_blocks(device, dtype, width):
    stats, expected = fresh_stats(9, device), fresh_stats(9, device)
    for shift in (0.0, 20.0, -5.0):  # the maximum comes in the second block
        logits, target = block(device, 9, width, dtype)
        fused.add_block(stats, logits + shift, target, TEMPERATURE)
        plain._add_block(expected, logits + shift, target, TEMPERATURE)
        torch.testing.assert_close(stats, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_gradient_of_a_block(device, dtype, width):
    logits, target = block(device, 9, width, dtype)
    z = logits.float() / TEMPERATURE
    per_row = torch.stack([z.amax(1), (z - z.amax(1, keepdim=True)).logsumexp(1), *torch.randn(3, 9, device=device)])
    expected = logits.clone()
    plain._to_gradient(expected, target, per_row, TEMPERATURE)
    fused.to_gradient(logits, target, per_row, TEMPERATURE)
    torch.testing.assert_close(logits, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_the_others(device):
    logits, target = block(device, 12, 100)
    together, apart = fresh_stats(12, device), fresh_stats(3, device)
    fused.add_block(together, logits, target, TEMPERATURE)
    fused.add_block(apart, logits[5:8], target[5:8], TEMPERATURE)
    assert torch.equal(together[:3, 5:8], apart[:3])
    per_row = torch.randn(5, 12, device=device)
    part = logits[5:8].clone()
    fused.to_gradient(logits, target, per_row, TEMPERATURE)
    fused.to_gradient(part, target[5:8], per_row[:, 5:8], TEMPERATURE)
    assert torch.equal(logits[5:8], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [5, 63, 64, 65, 150])
def test_values_and_gradients_are_those_without_kernels(device, dtype, vocab):
    generator = torch.Generator().manual_seed(vocab)
    hidden = (3 * torch.randn(37, 16, generator=generator)).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab, 16, generator=generator) / 4).to(device, dtype).requires_grad_()
    target = torch.randint(0, vocab, (37,), generator=generator).to(device)
    outcomes = []
    for backend, blocks in (("triton", (16, 64)), ("torch", None)):
        results = token_logprobs(hidden, weight, target, TEMPERATURE, blocks=blocks, backend=backend)
        loss = (results[0] * torch.arange(37, device=device)).sum() - 3 * results[1].sum()
        outcomes.append((*results, *torch.autograd.grad(loss, (hidden, weight))))
    for ours, reference in zip(outcomes[0][:2], outcomes[1][:2], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(outcomes[0][2:], outcomes[1][2:], strict=True):
        assert ours.dtype == dtype
        assert (ours - reference).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * reference.norm()


@pytest.mark.parametrize("vocab", [9001, 8192, 130])
def test_the_samplers_table_has_the_learners_numbers_wherever_a_row_begins(device, vocab, monkeypatch):
    monkeypatch.setenv("DELTARL_KDA_BACKEND", "triton")
    logits = 4 * torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab)).to(device)
    table = log_softmax(logits)
    torch.testing.assert_close(table, torch.log_softmax(logits, -1), rtol=1e-5, atol=1e-5)
    for row in range(6):  # an odd vocabulary has each begin at another distance from a multiple of 16 bytes
        assert torch.equal(log_softmax(logits[row : row + 1].clone())[0], table[row])
    weight, target = logits.T.contiguous(), torch.randint(0, vocab, (6,), device=device)
    chosen, _ = token_logprobs(torch.eye(6, device=device), weight, target, backend="triton")
    assert torch.equal(chosen, table.gather(1, target.unsqueeze(1)).squeeze(1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logits_that_are_not_finite_show(device):
    hidden, weight = torch.ones(16, 4, device=device), torch.ones(40, 4, device=device)
    hidden[3] = float("nan")
    hidden[5] = float("inf")
    target = torch.zeros(16, dtype=torch.int64, device=device)
    for result in token_logprobs(hidden, weight, target, blocks=(16, 16), backend="triton"):
        assert result.isfinite().logical_not().nonzero().flatten().tolist() == [3, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="ids are checked on a CPU")
def test_a_token_outside_the_vocabulary_has_no_probability(device):
    target = torch.tensor([-100, 0, 39, 40], device=device)
    hidden, weight = torch.ones(4, 4, device=device), torch.ones(40, 4, device=device)
    assert token_logprobs(hidden, weight, target)[0].isnan().tolist() == [True, False, False, True]


def test_no_rows_are_fine(device):
    hidden, weight = torch.ones(0, 4, device=device, requires_grad=True), torch.ones(40, 4, device=device)
    logprobs, entropy = token_logprobs(
        hidden, weight, torch.zeros(0, dtype=torch.int64, device=device), backend="triton"
    )
    assert len(logprobs) == len(entropy) == 0
    assert torch.autograd.grad(logprobs.sum(), hidden)[0].shape == (0, 4)
