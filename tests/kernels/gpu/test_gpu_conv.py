"""The convolution kernels against fp64 references, and the promises they make to the bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltarl.kernels.gpu import conv
from deltarl.kernels.gpu.conv import short_conv, store_window

MIXED = [3, 0, 1, 5, 2, 0, 4, 21, 1]
# Of the largest number. Half a step of the format, and the rounding of a few fp32 operations.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def packing(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Bounds and positions."""
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    position = torch.cat([torch.arange(n) for n in lengths])
    return cu_seqlens.to(device), position.to(device)


def inputs(lengths: list[int], dim: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x, weight and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), dim), (dim, width), (sum(lengths), dim)]
    return tuple(torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes)


def reference(x: Tensor, weight: Tensor, lengths: list[int]) -> Tensor:
    """Sequence by sequence in fp64."""
    width, outs = weight.shape[1], []
    for part in x.split(lengths):
        padded = F.pad(part, (0, 0, width - 1, 0))
        outs.append(sum(weight[:, i] * padded[i : i + len(part)] for i in range(width)))
    return F.silu(torch.cat(outs))


def run(x: Tensor, weight: Tensor, grad: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = short_conv(x, weight, *packing(lengths, x.device))
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= tolerance * float(want.abs().max())


@pytest.mark.parametrize(
    ("dim", "width", "dtype"),
    [
        (24, 2, torch.float32),
        (24, 3, torch.float32),
        (24, 4, torch.float32),
        (24, 4, torch.bfloat16),
        (24, 4, torch.float16),
        (136, 4, torch.float32),  # more than one block of channels
        (7, 3, torch.bfloat16),  # no multiple of anything
    ],
)
def test_values_and_gradients_are_those_of_an_fp64_reference(dim, width, dtype, device):
    x, weight, grad = inputs(MIXED, dim, width, dtype, device)
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    want = reference(exact_x, exact_weight, MIXED)
    want_grads = torch.autograd.grad(want, (exact_x, exact_weight), grad.double())
    got = run(x, weight, grad, MIXED)
    for result, expected in zip(got, (want.detach(), *want_grads), strict=True):
        assert result.dtype == dtype
        assert_near(result, expected, TOLERANCE[dtype])


def test_rows_may_lie_apart_in_x_and_in_the_gradient(device):
    x, weight, grad = inputs(MIXED, 32, 4, torch.float32, device)
    apart = [torch.cat([t * 9, t, t * 7], 1)[:, 32:64] for t in (x, grad)]
    assert apart[0].stride() == (96, 1)
    want = run(x, weight, grad, MIXED)
    assert all(torch.equal(a, b) for a, b in zip(run(apart[0], weight, apart[1], MIXED), want, strict=True))
    x, grad = (t.T.contiguous().T for t in (x, grad))  # neighbours in a row lie apart
    assert x.stride() == (1, len(x))
    assert all(torch.equal(a, b) for a, b in zip(run(x, weight, grad, MIXED), want, strict=True))


def test_an_fp32_weight_serves_bf16_inputs_and_gets_an_fp32_gradient(device):
    x, weight, grad = inputs(MIXED, 32, 4, torch.bfloat16, device)
    want = run(x, weight, grad, MIXED)
    got = run(x, weight.float(), grad, MIXED)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert got[2].dtype == torch.float32
    assert torch.equal(got[2].bfloat16(), want[2])


@pytest.fixture
def short_blocks(monkeypatch):
    """A backward of several blocks for few tokens."""
    monkeypatch.setattr(conv, "BACKWARD_ROWS", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_sequence_gets_the_very_numbers_it_gets_alone(dtype, device, short_blocks):
    lengths = [2, 0, 1, 3, 5, 0, 4, 6, 19, 0]
    x, weight, grad = inputs(lengths, 40, 4, dtype, device)
    out, grad_x, _ = run(x, weight, grad, lengths)
    for part, part_grad, part_out, part_grad_x in zip(*(t.split(lengths) for t in (x, grad, out, grad_x)), strict=True):
        alone_out, alone_grad_x, _ = run(part, weight, part_grad, [len(part)])
        assert torch.equal(part_out, alone_out)
        assert torch.equal(part_grad_x, alone_grad_x)


def test_neither_values_nor_gradients_pass_the_bounds_of_a_sequence(device):
    lengths = [5, 1, 2, 6]
    x, weight, grad = inputs(lengths, 16, 4, torch.float32, device)
    out, grad_x, _ = run(x, weight, grad, lengths)
    for i in range(len(lengths)):
        spoilt, spoilt_grad = x.clone(), grad.clone()
        spoilt.split(lengths)[i].fill_(torch.nan)
        spoilt_grad.split(lengths)[i].fill_(torch.nan)
        spoilt_out, spoilt_grad_x, _ = run(spoilt, weight, spoilt_grad, lengths)
        for j in range(len(lengths)):
            assert torch.equal(spoilt_out.split(lengths)[j], out.split(lengths)[j]) == (i != j)
            assert torch.equal(spoilt_grad_x.split(lengths)[j], grad_x.split(lengths)[j]) == (i != j)


def test_it_is_causal_to_the_bit(device):
    lengths, changed = [12], 5
    x, weight, grad = inputs(lengths, 16, 4, torch.float32, device)
    other, other_grad = x.clone(), grad.clone()
    other[changed] += 1
    other_grad[changed] += 1
    out, grad_x, _ = run(x, weight, grad, lengths)
    other_out, _, _ = run(other, weight, grad, lengths)
    _, other_grad_x, _ = run(x, weight, other_grad, lengths)
    assert (out == other_out).all(1).logical_not().nonzero().flatten().tolist() == list(range(changed, changed + 4))
    differ = (grad_x == other_grad_x).all(1).logical_not().nonzero().flatten().tolist()
    assert differ == list(range(changed - 3, changed + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_repeats_itself_to_the_bit(dtype, device, short_blocks):
    x, weight, grad = inputs([40], 48, 4, dtype, device)
    first, second = run(x, weight, grad, [40]), run(x, weight, grad, [40])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_long_inputs_keep_the_partial_sums_few(device, short_blocks, monkeypatch):
    monkeypatch.setattr(conv, "MAX_PARTIALS", 3)
    lengths = [*MIXED, 0, 7]
    x, weight, grad = inputs(lengths, 16, 4, torch.float32, device)
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kw: made.append(shape) or empty(*shape, **kw))
    few = run(x, weight, grad, lengths)
    assert made == [(3, 4, 16)]
    monkeypatch.undo()
    want = run(x, weight, grad, lengths)
    assert torch.equal(few[1], want[1])
    torch.testing.assert_close(few[2], want[2])


@pytest.mark.parametrize(("width", "dtype"), [(2, torch.float32), (3, torch.bfloat16), (4, torch.float32)])
def test_a_prompt_in_pieces_gives_the_very_numbers_of_one_in_one_go(dtype, width, device):
    dim = 272  # more than one block of channels
    lengths = [14, 3, 0, 9, 1, 40]
    pieces = [[1, 0, 0, 2, 1, 3], [0, 2, 0, 3, 0, 33], [5, 1, 0, 0, 0, 1], [8, 0, 0, 4, 0, 3]]
    assert [sum(column) for column in zip(*pieces, strict=True)] == lengths
    x, weight, _ = inputs(lengths, dim, width, dtype, device)
    cu_seqlens, position = packing(lengths, device)
    whole = short_conv(x, weight, cu_seqlens, position)
    slots = torch.tensor([4, 0, 7, 2, 5, 6], device=device)
    window = torch.full((8, width, dim), torch.nan, dtype=dtype, device=device)  # what nobody wrote shows if read
    start = torch.zeros_like(slots)
    for piece in pieces:
        piece_bounds, piece_position = packing(piece, device)
        rows = torch.cat([torch.arange(n) for n in piece]).to(device) + torch.repeat_interleave(
            cu_seqlens[:-1] + start, torch.tensor(piece, device=device)
        )
        absolute = piece_position + torch.repeat_interleave(start, torch.tensor(piece, device=device))
        # Rows of a wider tensor, as in the model.
        part = torch.cat([x[rows], x[rows]], 1)[:, :dim]
        assert torch.equal(short_conv(part, weight, piece_bounds, absolute, window, slots), whole[rows])
        store_window(part, piece_bounds, window, slots, start)
        start = start + piece_bounds.diff()
    last = torch.full_like(window, torch.nan)
    store_window(x, cu_seqlens, last, slots)
    assert torch.equal(window.nan_to_num(77), last.nan_to_num(77))


def test_the_window_holds_the_last_inputs_at_their_position_modulo_its_width(device):
    lengths, slots = [0, 1, 2, 3, 4, 5, 10], [3, 0, 8, 1, 2, 6, 7]
    start = [0, 5, 0, 3, 2, 0, 9]
    x, _, _ = inputs(lengths, 12, 4, torch.bfloat16, device)
    window = torch.full((9, 4, 12), -1.0, dtype=torch.bfloat16, device=device)
    want = window.clone()
    for slot, first, part in zip(slots, start, x.split(lengths), strict=True):
        for i, row in enumerate(part):
            want[slot, (first + i) % 4] = row
    cu_seqlens, _ = packing(lengths, device)
    store_window(x, cu_seqlens, window, torch.tensor(slots, device=device), torch.tensor(start, device=device))
    assert torch.equal(window, want)


def test_fresh_sequences_may_go_the_way_of_continued_ones(device):
    x, weight, _ = inputs(MIXED, 16, 4, torch.float32, device)
    cu_seqlens, position = packing(MIXED, device)
    window = torch.full((len(MIXED), 4, 16), torch.nan, device=device)
    slots = torch.arange(len(MIXED), device=device)
    continued = short_conv(x, weight, cu_seqlens, position, window, slots)
    assert torch.equal(continued, short_conv(x, weight, cu_seqlens, position))


def test_no_tokens_at_all(device):
    x, weight, grad = inputs([0, 0], 16, 4, torch.float32, device)
    out, grad_x, grad_weight = run(x, weight, grad, [0, 0])
    assert out.shape == grad_x.shape == (0, 16)
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    window, slots = torch.ones(2, 4, 16, device=device), torch.arange(2, device=device)
    cu_seqlens, position = packing([0, 0], device)
    assert short_conv(x, weight, cu_seqlens, position, window, slots).shape == (0, 16)
    store_window(x, cu_seqlens, window, slots)
    assert torch.equal(window, torch.ones_like(window))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 2, 8)}, r"x \(5, 2, 8\) must be \[T, D\]"),
        ({"weight": torch.zeros(7, 4)}, r"weight \(7, 4\) must be \[D, W\] with D = 8"),
        ({"weight": torch.zeros(8, 5)}, "W from 2 to 4"),
        ({"position": torch.arange(4)}, r"position \(4,\) must be \[T\] = \(5,\)"),
        ({"slots": torch.arange(2)}, "given together"),
        ({"initial": torch.zeros(2, 4, 8)}, "given together"),
        ({"initial": torch.zeros(2, 3, 8), "slots": torch.arange(2)}, r"contiguous \[S, W, D\] = \(S, 4, 8\)"),
        ({"initial": torch.zeros(2, 8, 4).mT, "slots": torch.arange(2)}, "must be contiguous"),
        ({"initial": torch.zeros(2, 4, 8).half(), "slots": torch.arange(2)}, "window is torch.float16"),
        ({"initial": torch.zeros(2, 4, 8), "slots": torch.arange(3)}, r"slots \(3,\) must be \[N\]"),
        (
            {"initial": torch.zeros(2, 4, 8), "slots": torch.arange(2), "weight": torch.ones(8, 4, requires_grad=True)},
            "no gradient when it continues",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "x": torch.zeros(5, 8),
        "weight": torch.zeros(8, 4),
        "cu_seqlens": torch.tensor([0, 2, 5]),
        "position": torch.tensor([0, 1, 0, 1, 2]),
    }
    with pytest.raises(ValueError, match=message):
        short_conv(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5)}, r"must be \[T, D\] and \[S, W, D\]"),
        ({"window": torch.zeros(2, 5, 8)}, "W from 2 to 4"),
        ({"window": torch.zeros(2, 4, 9)}, r"\(S, 4, 8\)"),
        ({"window": torch.zeros(2, 4, 8).bfloat16()}, "they must be the same"),
        ({"slots": torch.arange(3)}, r"slots \(3,\)"),
        ({"start": torch.zeros(3)}, r"start \(3,\) must be \[N\]"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(change, message):
    arguments = {
        "x": torch.zeros(5, 8),
        "cu_seqlens": torch.tensor([0, 2, 5]),
        "window": torch.zeros(2, 4, 8),
        "slots": torch.arange(2),
    }
    with pytest.raises(ValueError, match=message):
        store_window(**(arguments | change))
