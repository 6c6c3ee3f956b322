"""Prefill in any pieces, then decode, gives the very numbers of one pass over the whole sequence."""

import pytest
import torch
from gpu_cases import (
    CHUNK,
    EPS,
    Layer,
    gpu_only,
    on_gpu,
    same_bits,
)

from deltarl.kernels.gpu.decode import decode_step
from deltarl.kernels.gpu.inputs import Gate

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Mean and deviation of the gate's input, and its bound: weak decays; so strong that a chunk's cannot be undone; all
# strengths within a chunk; the bounded gate.
WEAK, STRONG, MIXED, BOUNDED = (0.0, 1.0, None), (16.0, 1.0, None), (3.0, 8.0, None), (0.0, 1.0, -5.0)


def make(dims, dtype, gate, sequences, length, device, width=4):
    strength, spread, bound = gate
    layer = Layer.random(dims, dtype, device, bound, width)
    return layer, layer.tokens(sequences, length, strength, spread)


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "width"),
    [
        (FP32, (1, 16, 16), MIXED, 4),
        (BF16, (1, 16, 32), STRONG, 2),
        on_gpu(FP32, (2, 64, 64), STRONG, 4),
        on_gpu(FP32, (2, 128, 128), WEAK, 4),
        on_gpu(BF16, (4, 128, 128), WEAK, 4),
        on_gpu(BF16, (4, 128, 128), MIXED, 4),
        on_gpu(BF16, (4, 128, 128), BOUNDED, 4),
        on_gpu(BF16, (2, 64, 128), STRONG, 3),
        on_gpu(FP16, (2, 128, 64), WEAK, 4),
    ],
)
def test_a_prompt_in_pieces_gives_the_very_numbers_of_one_in_one_go(dtype, dims, gate, width, device):
    lengths = [34, 19, 16, 0]
    pieces = [[5, 0, 16, 0], [11, 2, 0, 0], [1, 1, 0, 0], [17, 16, 0, 0]]
    assert [sum(column) for column in zip(*pieces, strict=True)] == lengths
    layer, x = make(dims, dtype, gate, 4, max(lengths), device, width)
    slots = torch.tensor([4, 0, 2, 5], device=device)
    whole, parts = layer.memory(6), layer.memory(6)
    want_out, want = layer.prefill(x, whole, slots, lengths)

    start, out, got = [0] * 4, [[] for _ in lengths], [[] for _ in lengths]
    for i, piece in enumerate(pieces):
        part_out, part = layer.prefill(x, parts, slots, piece, start if i else None)
        for n in range(4):
            out[n].append(part_out[n])
            got[n].append(part[n])
        start = [a + b for a, b in zip(start, piece, strict=True)]
    for n, slot in enumerate(slots.tolist()):
        assert torch.equal(torch.cat(out[n]), want_out[n])
        assert torch.equal(torch.cat(got[n]), want[n])
        known = zip(parts.known(slot, lengths[n]), whole.known(slot, lengths[n]), strict=True)
        assert all(torch.equal(a, b) for a, b in known)
    assert bool((parts.state.state[5] == 0).all())  # nothing was prefilled there: a sequence starts
    leftovers = layer.memory(6)
    assert all(same_bits(a[[1, 3]], b[[1, 3]]) for a, b in zip(parts.tensors(), leftovers.tensors(), strict=True))


@pytest.mark.parametrize(
    ("dtype", "dims", "gate"),
    [(FP32, (1, 16, 16), MIXED), (BF16, (1, 16, 16), BOUNDED), on_gpu(BF16, (4, 128, 128), WEAK)],
)
def test_prefill_gives_the_very_numbers_of_the_learner(dtype, dims, gate, device):
    layer, x = make(dims, dtype, gate, 1, 20, device)
    slots = torch.tensor([0], device=device)
    memory = layer.memory(1)
    (out,), _ = layer.prefill(x, memory, slots, [20])
    learner, _ = layer.learn(x, 20)
    assert torch.equal(out, learner)
    _, state = layer.learn(x, CHUNK)
    assert torch.equal(memory.state.state, state)  # the state at the last boundary
    layer.prefill(x, memory, slots, [CHUNK])
    assert torch.equal(memory.state.state, state)


EVERY = list(range(40))


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "prompts", "steps"),
    [
        (FP32, (1, 16, 16), MIXED, [14], 18),
        (BF16, (1, 32, 16), WEAK, [15], 18),
        (BF16, (1, 16, 16), STRONG, [16], 17),
        (BF16, (1, 16, 32), BOUNDED, [0, 1], 3),
        (FP16, (2, 16, 16), WEAK, [31], 3),
        on_gpu(FP32, (2, 64, 64), WEAK, EVERY, 36),
        on_gpu(FP32, (2, 128, 128), MIXED, EVERY, 36),
        on_gpu(FP32, (2, 32, 64), STRONG, EVERY, 36),
        on_gpu(BF16, (4, 128, 128), WEAK, EVERY, 36),
        on_gpu(BF16, (4, 128, 128), MIXED, EVERY, 36),
        on_gpu(BF16, (4, 128, 128), STRONG, EVERY, 36),
        on_gpu(BF16, (4, 128, 128), BOUNDED, EVERY, 36),
        on_gpu(BF16, (2, 64, 128), WEAK, EVERY, 36),
        on_gpu(BF16, (2, 128, 64), MIXED, EVERY, 36),
        on_gpu(BF16, (2, 64, 64), STRONG, EVERY, 36),
        on_gpu(FP16, (4, 128, 128), WEAK, EVERY, 36),
        on_gpu(FP16, (2, 32, 32), MIXED, EVERY, 36),
    ],
)
def test_a_decoded_token_is_the_row_of_the_chunk(dtype, dims, gate, prompts, steps, device):
    full = [n + steps for n in prompts]
    layer, x = make(dims, dtype, gate, len(prompts), max(full), device)
    slots = torch.randperm(len(prompts) + 1, generator=torch.Generator().manual_seed(0))[: len(prompts)].to(device)
    whole, memory = layer.memory(len(prompts) + 1), layer.memory(len(prompts) + 1)
    _, want = layer.prefill(x, whole, slots, full)
    layer.prefill(x, memory, slots, prompts)
    position = torch.tensor(prompts, device=device)
    for step in range(steps):
        got = layer.decode(x, memory, slots, position + step)
        for n, start in enumerate(prompts):
            assert torch.equal(got[n], want[n][start + step]), (start, step)
    for slot, length in zip(slots.tolist(), full, strict=True):
        known = zip(memory.known(slot, length), whole.known(slot, length), strict=True)
        assert all(torch.equal(a, b) for a, b in known), length


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_rows_idle_or_in_any_order_change_nothing_else(dtype, device):
    prompts, steps = [15, 3, 0], 2
    layer, x = make((1, 16, 16), dtype, WEAK, 3, max(prompts) + steps, device)
    straight, mixed = layer.memory(6), layer.memory(6)
    layer.prefill(x, straight, torch.tensor([0, 1, 2], device=device), prompts)
    layer.prefill(x, mixed, torch.tensor([4, 0, 3], device=device), prompts)
    order = torch.tensor([1, 0, 2, 2], device=device)
    shuffled = type(x)(*(t[order] for t in (x.qkv, x.g, x.beta, x.out_gate)))
    position = torch.tensor(prompts, device=device)
    for step in range(steps):
        want = layer.decode(x, straight, torch.tensor([0, 1, 2], device=device), position + step)
        before = mixed.clone()
        # The third row has nothing to do, in the second step the second has not either.
        slots = torch.tensor([0, -1 if step else 4, -1, 3], device=device)
        got = layer.decode(shuffled, mixed, slots, position[order] + step)
        for row, n in enumerate(order.tolist()):
            assert torch.equal(got[row], want[n] if slots[row] >= 0 else torch.zeros_like(want[n]))
        untouched = [slot for slot in range(6) if slot not in slots]
        for a, b in zip(mixed.tensors(), before.tensors(), strict=True):
            assert same_bits(a[untouched], b[untouched])
    for slot, other, length in ((0, 1, 5), (3, 2, 2)):
        known = zip(mixed.known(slot, length), straight.known(other, length), strict=True)
        assert all(torch.equal(a, b) for a, b in known)


def test_idle_rows_alone_and_no_rows_touch_nothing(device):
    layer, x = make((2, 16, 16), BF16, WEAK, 2, 1, device)
    memory = layer.memory(3)
    before = memory.clone()
    nowhere = torch.tensor([-1, -7], device=device)
    assert bool((layer.decode(x, memory, nowhere, torch.zeros_like(nowhere)) == 0).all())
    none = nowhere[:0]
    assert layer.decode(x, memory, none, none).shape == (0, 2, 16)
    assert all(same_bits(a, b) for a, b in zip(memory.tensors(), before.tensors(), strict=True))


@pytest.mark.parametrize(
    ("dims", "gate", "steps"),
    [
        ((1, 16, 32), WEAK, 18),
        ((1, 16, 16), MIXED, 4),
        on_gpu((4, 128, 128), WEAK, 100),
        on_gpu((4, 128, 128), STRONG, 100),
        on_gpu((4, 64, 128), BOUNDED, 100),
    ],
)
def test_the_recurrent_form_agrees_with_the_chunk(dims, gate, steps, device):
    layer, x = make(dims, FP32, gate, 1, steps, device)
    slots = torch.tensor([1], device=device)
    memory = layer.memory(2)
    _, (want,) = layer.prefill(x, memory, slots, [steps])
    memory.state.state.zero_()
    got = torch.cat([layer.decode(x, memory, slots, slots * 0 + t, recurrent=True) for t in range(steps)])
    error = (got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
    assert float(error.max()) <= 1e-5


@gpu_only
@pytest.mark.parametrize("gate", [WEAK, STRONG])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_captured_step_repeats_the_eager_one(recurrent, gate, device):
    batch, steps = 5, 40
    layer, x = make((4, 128, 128), BF16, gate, batch, steps, device)
    slots = torch.tensor([3, -1, 0, 5, 1], device=device)
    eager, captured = layer.memory(6), layer.memory(6)
    for memory in (eager, captured):
        memory.state.state.zero_()
    rows = x.rows(torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device))
    position = torch.zeros(batch, dtype=torch.long, device=device)

    def step():
        return decode_step(
            rows.qkv, rows.g, rows.beta, rows.out_gate,
            conv_weight=layer.conv_weight, gate=layer.gate, norm_weight=layer.norm_weight, eps=EPS,
            window=captured.window, state=captured.state, slots=slots, position=position, recurrent=recurrent,
        )  # fmt: skip

    untouched = captured.clone()
    step()  # compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for a, b in zip(captured.tensors(), untouched.tensors(), strict=True):
        a.copy_(b)
    for t in range(steps):
        at = torch.full_like(position, t)
        position.copy_(at)
        new = x.rows(torch.arange(batch, device=device), at)
        for name in ("qkv", "g", "beta", "out_gate"):
            getattr(rows, name).copy_(getattr(new, name))
        graph.replay()
        assert torch.equal(out, layer.decode(x, eager, slots, at, recurrent)), t
    assert all(same_bits(a, b) for a, b in zip(captured.tensors(), eager.tensors(), strict=True))


@gpu_only
@pytest.mark.parametrize("gate", [WEAK, STRONG])
def test_a_large_batch_gives_the_very_numbers_of_its_rows(gate, device):
    batch, prompt, steps = 300, 13, 5
    layer, x = make((8, 128, 128), BF16, gate, batch, prompt + steps, device)
    slots = torch.arange(batch, device=device)
    memory = layer.memory(batch)
    layer.prefill(x, memory, slots, [prompt] * batch)
    alone = memory.clone()
    for step in range(steps):
        at = torch.full_like(slots, prompt + step)
        got = layer.decode(x, memory, slots, at)
        for n in range(0, batch, 37):
            assert torch.equal(got[n], layer.decode(x, alone, slots.where(slots == n, -1), at)[n])


def one_step(device, **changes):
    """A valid call on 3 slots, with some arguments replaced."""
    layer, x = make((2, 16, 32), FP32, WEAK, 2, 1, device)
    memory, zero = layer.memory(3), torch.zeros(2, dtype=torch.long, device=device)
    slots = torch.arange(2, device=device)
    rows = x.rows(slots, zero)
    arguments = {
        "qkv": rows.qkv, "g": rows.g, "beta": rows.beta, "out_gate": rows.out_gate,
        "conv_weight": layer.conv_weight, "gate": layer.gate, "norm_weight": layer.norm_weight, "eps": EPS,
        "window": memory.window, "state": memory.state, "slots": slots, "position": zero,
    }  # fmt: skip
    changes = {name: t.to(device) for name, t in changes.items()}
    return decode_step(**(arguments | changes))


def test_the_call_that_is_spoilt_below_is_taken(device):
    assert one_step(device).shape == (2, 2, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g": torch.zeros(2, 2, 48)}, "head dims .* K 48, V 32"),
        ({"out_gate": torch.zeros(2, 2, 256)}, "head dims .* K 16, V 256"),
        ({"qkv": torch.zeros(2, 128).double()}, "fp32, bf16, fp16: .* torch.float64"),
        ({"qkv": torch.zeros(2, 96)}, r"must be .* with D = 128: \(\(2, 96\)"),
        ({"conv_weight": torch.zeros(96, 4)}, r"must be .* with D = 128: .*\(96, 4\)"),
        ({"window": torch.zeros(3, 3, 128)}, r"must be .* with D = 128: .*\(3, 3, 128\)"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(changes, message, device):
    with pytest.raises(ValueError, match=message):
        one_step(device, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": torch.zeros(2, 3)},
        {"out_gate": torch.zeros(2, 3, 32)},
        {"norm_weight": torch.zeros(64)},
        {"slots": torch.arange(3)},
        {"position": torch.zeros(3, dtype=torch.long)},
        {"window": torch.zeros(3, 4, 128).bfloat16()},
        {"window": torch.zeros(3, 128, 4).mT},
        {"conv_weight": torch.zeros(4, 128).T},
        {"conv_weight": torch.zeros(128, 5), "window": torch.zeros(3, 5, 128)},
        {"qkv": torch.zeros(128, 2).T},
        {"g": torch.zeros(2, 16, 2).mT},
    ],
)
def test_shapes_and_layouts_that_do_not_fit_are_refused(changes, device):
    """All larger than they should be, lest the kernel read what is not there, or laid out in another order."""
    with pytest.raises(ValueError, match="|".join(changes)):
        one_step(device, **changes)


@pytest.mark.parametrize("changes", [{"lower_bound": 1.0}, {"a_log": None}, {"dt_bias": None}])
def test_a_gate_without_its_parameters_is_refused(changes):
    arguments = {"a_log": torch.zeros(2), "dt_bias": torch.zeros(32), "lower_bound": None, "in_kernel": True}
    with pytest.raises(ValueError, match="below 0" if "lower_bound" in changes else "needs A_log"):
        Gate.of(**(arguments | changes))
