"""A row of a product is the same in any company, and right."""

import pytest
import torch

from deltarl.kernels.batch_invariant import _addmm
from deltarl.kernels.gpu import matmul as module
from deltarl.kernels.gpu.matmul import matmul

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPES = [(130, 2048, 300), (1, 384, 70), (600, 1000, 4096)] if GPU else [(20, 40, 35), (1, 16, 70)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16] if GPU else [torch.float32, torch.bfloat16]


def operands(m, k, n, dtype, *batch):
    gen = torch.Generator().manual_seed(m * k + n)
    made = (torch.randn(*batch, *shape, generator=gen) for shape in ((m, k), (n, k)))
    a, b = (x.to(DEVICE, dtype) for x in made)
    return a, b.mT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(shape, dtype):
    a, b = operands(*shape, dtype)
    bias = torch.arange(shape[2], device=DEVICE).to(dtype) / 16
    want = a.double() @ b.double() + bias.double()
    got = matmul(a, b, bias)
    assert got.dtype == dtype
    error = float((got.double() - want).norm() / want.norm())
    assert error < {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs tensor cores")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_of_an_element_do_not_depend_on_the_tile(shape, dtype, monkeypatch):
    a, b = operands(*shape, dtype)
    want = matmul(a, b)
    tiles = [(16, 32, 16, 4, 2), (64, 64, 32, 4, 2), (128, 128, 64, 8, 3), (32, 128, 128, 4, 2)]
    for tile in tiles:
        if dtype == torch.float32 and tile[0] * tile[1] > 64 * 64:
            continue  # without tensor cores the larger ones need too much shared memory
        monkeypatch.setattr(module, "_tile", lambda *_, tile=tile: tile)
        assert torch.equal(matmul(a, b), want), tile


def test_rows_do_not_know_of_each_other():
    a, b = operands(200 if GPU else 33, 1024 if GPU else 32, 256 if GPU else 40, torch.bfloat16)
    want = matmul(a, b)
    for rows in (1, 2, 15, 16, 17, 31, 33, 64, 129):
        if rows <= len(a):
            assert torch.equal(matmul(a[-rows:], b), want[-rows:]), rows
    assert torch.equal(matmul(a, b[:, 5:21]), want[:, 5:21])


def test_batches_and_strides():
    a, b = operands(20, 48, 24, torch.bfloat16, 3)
    want = torch.stack([matmul(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.equal(matmul(a, b), want)
    turned = a.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(matmul(turned, b.contiguous()), want)
    assert matmul(a[:, :0], b).shape == (3, 0, 24)


def test_the_sum_with_a_matrix_or_a_bias():
    a, b = operands(18, 32, 20, torch.float32)
    bias, matrix = torch.randn(20, device=DEVICE), torch.randn(18, 20, device=DEVICE)
    torch.testing.assert_close(_addmm(bias, a, b), torch.addmm(bias, a, b), rtol=1e-5, atol=1e-5)
    want = torch.addmm(matrix, a, b, beta=0.5, alpha=2)
    torch.testing.assert_close(_addmm(matrix, a, b, beta=0.5, alpha=2), want, rtol=1e-5, atol=1e-5)
    unread = torch.full_like(matrix, float("nan"))
    assert torch.equal(_addmm(unread, a, b, beta=0), matmul(a, b))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), "cannot multiply"),
        (torch.zeros(2, 3), torch.zeros(1, 3, 2), "cannot multiply"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64), "float64"),
        (torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bfloat16), "bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        matmul(a, b)
