"""The chunk kernels are the recurrence: output, final state, every gradient. And the promises they make to the bit."""

from dataclasses import replace

import pytest
import torch
from gpu_cases import (
    LEAVES,
    TOKENS,
    assert_near,
    by_sequence,
    constant_gate,
    forward,
    gpu_only,
    mixed_gate,
    named_gate,
    norm,
    on_gpu,
    random_problem,
    reference,
    relative_errors,
    run,
    shares,
)

from deltarl.kernels.gpu import backward
from deltarl.kernels.gpu.chunk import chunk_kda
from deltarl.kernels.gpu.index import ChunkIndex

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LENGTHS = [3, 0, 66]  # the last has more chunks than lie between two checkpoints of the state
LONG = [130, 1, 0, 517, 64, 300]
EDGES = [5, 0, 16, 1, 33, 15, 17, 31, 2, 64, 0, 48, 47, 49, 65]  # packed, in no order
STRENGTHS = [-1e-6, -1e-2, -1.0, -3.75, -10.0, -100.0, None]  # of all tokens; None: all strengths in every chunk


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "in_kernel", "lengths"),
    [
        (FP32, (2, 32, 16), "softplus", True, [3, 20]),
        (FP32, (1, 16, 32), "bounded", True, LENGTHS),
        (FP32, (1, 16, 16), "mixed", False, [20]),
        (BF16, (1, 32, 16), "softplus", True, LENGTHS),
        (BF16, (1, 32, 32), "bounded", True, [3, 20]),
        (BF16, (1, 32, 16), "weak", False, [20]),
        (FP16, (2, 32, 32), "softplus", True, [20]),
        on_gpu(FP32, (2, 64, 64), "softplus", True, LONG),
        on_gpu(FP32, (2, 128, 128), "bounded", True, LONG),
        on_gpu(FP32, (2, 32, 128), "mixed", False, LONG),
        on_gpu(BF16, (4, 128, 128), "softplus", True, LONG),
        on_gpu(BF16, (4, 128, 128), "bounded", True, LONG),
        on_gpu(BF16, (4, 128, 128), "mixed", False, LONG),
        on_gpu(BF16, (3, 64, 128), "softplus", True, LONG),
        on_gpu(BF16, (3, 128, 64), "bounded", True, LONG),
        on_gpu(BF16, (2, 64, 64), "strong", True, LONG),
        on_gpu(BF16, (2, 32, 32), "softplus", True, LONG),
        on_gpu(FP16, (2, 128, 128), "softplus", True, LONG),
        on_gpu(FP16, (2, 64, 64), "bounded", True, LONG),
    ],
)
def test_values_and_gradients_are_those_of_the_recurrence(dtype, dims, gate, in_kernel, lengths, device):
    gate = named_gate(gate, sum(lengths), dims)
    x = random_problem(lengths, dims, dtype, device, gate, in_kernel=in_kernel)
    got, want = run(x), reference(x)
    assert_near(got, want, dtype)
    if want.rate is not None:
        # Of what the kernel returns for g, they are sums; their own errors are independent.
        each, whole = got["g"].double() * want.rate, got["g"].double().sum(0).flatten()
        rounding = {FP32: 1e-6, BF16: 2**-8, FP16: 2**-8}[dtype]
        assert norm(got["a_log"] - each.sum((0, 2))) <= rounding * norm(each)
        assert norm(got["dt_bias"] - whole) <= rounding * norm(got["g"])


@pytest.mark.parametrize(
    ("dtype", "dims", "lengths"),
    [
        (FP32, (1, 16, 16), EDGES),
        on_gpu(FP32, (1, 32, 64), list(range(131))),
        on_gpu(BF16, (2, 128, 128), list(range(131))),
        on_gpu(BF16, (2, 64, 32), list(range(130, -1, -1))),
    ],
)
def test_every_length_around_the_chunk_edges(dtype, dims, lengths, device):
    x = random_problem(lengths, dims, dtype, device)
    want = reference(x, chunked=len(lengths) > 20)
    got = run(x)
    assert_near(got, want, dtype)
    if dtype == FP32:  # in bf16 the few numbers of a short sequence are a matter of luck
        for length, part in zip(lengths, by_sequence(x, got, want), strict=True):
            assert max(shares(*part, dtype).values()) <= 1, length


@pytest.mark.parametrize(
    ("dtype", "dims", "length", "betas"),
    [
        (FP32, (1, 16, 16), 17, (0.0, 1.0)),
        (BF16, (1, 32, 32), 17, (1.0,)),
        on_gpu(FP32, (2, 64, 64), 100, (0.0, 1.0)),
        on_gpu(BF16, (2, 64, 64), 100, (0.0, 1.0)),
        on_gpu(BF16, (2, 128, 128), 100, (0.0, 1.0)),
    ],
)
def test_any_strength_of_the_gate_and_both_ends_of_beta(dtype, dims, length, betas, device):
    """A sequence for each. The few numbers of one may be off by twice the bound, if all together keep it."""
    cases = [(strength, beta) for strength in STRENGTHS for beta in betas]
    shape = (length, *dims[:2])
    gates = [mixed_gate(*shape) if s is None else constant_gate(s).expand(shape) for s, _ in cases]
    beta = torch.tensor([beta for _, beta in cases]).repeat_interleave(length)[:, None]
    x = random_problem([length] * len(cases), dims, dtype, device, torch.cat(gates), beta=beta)
    errors = [shares(*part, dtype) for part in by_sequence(x, run(x), reference(x))]
    for name in errors[0]:
        worst = max((e[name], str(case)) for e, case in zip(errors, cases, strict=True))
        assert worst[0] <= 2, (name, worst)
        assert sum(e[name] ** 2 for e in errors) <= len(errors), name


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize(
    ("dtype", "dims", "length"),
    [(FP32, (1, 16, 16), 20), on_gpu(BF16, (1, 32, 16), 200), on_gpu(BF16, (2, 128, 128), 200)],
)
def test_zero_keys_queries_and_values(dtype, dims, length, in_kernel, device):
    x = random_problem([length], dims, dtype, device, mixed_gate(length, *dims[:2]), in_kernel=in_kernel)
    x.k[::3], x.q[1::4], x.v[2::5] = 0.0, 0.0, 0.0
    assert_near(run(x), reference(x), dtype)
    x.k.zero_()
    assert_near(run(x), reference(x), dtype)


@pytest.mark.parametrize("gate", ["weak", "strong", "mixed"])
@pytest.mark.parametrize(
    ("dtype", "dims", "length", "places"),
    [
        (FP32, (1, 16, 16), 20, (3, 15, 16, 18)),
        (BF16, (1, 16, 16), 20, (3, 16)),
        on_gpu(FP32, (2, 64, 64), 90, (0, 1, 7, 15, 16, 40, 63, 64, 89)),
        on_gpu(BF16, (2, 128, 128), 90, (0, 1, 7, 15, 16, 40, 63, 64, 89)),
        on_gpu(BF16, (2, 64, 32), 90, (0, 1, 7, 15, 16, 40, 63, 64, 89)),
    ],
)
def test_nothing_before_a_changed_token_changes_by_a_bit(dtype, dims, length, places, gate, device):
    x = random_problem([length], dims, dtype, device, named_gate(gate, length, dims))
    other = random_problem([length], dims, dtype, device, seed=9)
    before, _ = forward(x)
    for i, t in enumerate(places):
        changed = replace(x, **{name: getattr(x, name).clone() for name in TOKENS})
        for name in TOKENS:
            getattr(changed, name)[t] = getattr(other, name)[t]
        changed.g[t] = (-300.0, -1e-4)[i % 2]  # beyond anything that can be undone, and next to nothing
        after, _ = forward(changed)
        assert torch.equal(before[:t], after[:t]), t
        assert not torch.equal(before[t], after[t])


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "lengths"),
    [
        (FP32, (1, 16, 16), "softplus", [7, 65, 0]),
        (BF16, (1, 16, 16), "mixed", [3, 0, 18]),
        on_gpu(FP32, (2, 64, 64), "softplus", LONG),
        on_gpu(FP32, (2, 64, 64), "mixed", LONG),
        on_gpu(BF16, (2, 64, 64), "strong", LONG),
        on_gpu(BF16, (2, 128, 128), "softplus", LONG),
        on_gpu(BF16, (2, 128, 128), "mixed", LONG),
        on_gpu(FP16, (2, 128, 64), "bounded", LONG),
    ],
)
def test_a_packed_sequence_gets_the_very_numbers_it_gets_alone(dtype, dims, gate, lengths, device):
    x = random_problem(lengths, dims, dtype, device, named_gate(gate, sum(lengths), dims))
    packed = run(x)
    for n in range(len(lengths)):
        alone = run(x.alone(n)) if lengths[n] else None
        for name, whole in packed.items():
            if name in ("out", *TOKENS) and alone:
                assert torch.equal(whole.split(lengths)[n], alone[name]), (n, name)
            elif name in ("final", "initial") and alone:
                assert torch.equal(whole[n], alone[name][0]), (n, name)
    empty = lengths.index(0)
    assert torch.equal(packed["final"][empty], x.initial[empty])
    assert torch.equal(packed["initial"][empty], x.weights(packed["out"], packed["final"])[1][empty])


@pytest.mark.parametrize("which", range(2))
def test_nothing_passes_the_bounds_of_a_sequence(which, device):
    lengths = [18, 3]
    x = random_problem(lengths, (1, 16, 16), FP32, device)
    want, spoilt = run(x), replace(x, **{name: getattr(x, name).clone() for name in TOKENS})
    for name in TOKENS:
        getattr(spoilt, name).split(lengths)[which].fill_(torch.nan)
    got = run(spoilt)
    for name in ("out", *TOKENS):
        same = [torch.equal(a, b) for a, b in zip(*(t[name].split(lengths) for t in (got, want)), strict=True)]
        assert same == [which != n for n in range(2)], name


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "lengths"),
    [
        (BF16, (1, 16, 16), "softplus", [20]),
        on_gpu(FP32, (4, 64, 64), "mixed", [*LONG, 2000]),
        on_gpu(BF16, (8, 128, 128), "softplus", [*LONG, 4000]),
        on_gpu(BF16, (8, 128, 128), "mixed", [*LONG, 4000]),
        on_gpu(BF16, (8, 64, 64), "bounded", [*LONG, 4000]),
    ],
)
def test_it_repeats_itself_to_the_bit(dtype, dims, gate, lengths, device):
    x = random_problem(lengths, dims, dtype, device, named_gate(gate, sum(lengths), dims))
    first = run(x)
    for _ in range(5 if device.type == "cuda" else 1):
        assert all(torch.equal(a, b) for a, b in zip(first.values(), run(x).values(), strict=True))


@pytest.mark.parametrize(
    ("dtype", "dims", "gate", "lengths"),
    [
        (FP32, (2, 16, 32), "bounded", [3, 20]),
        (BF16, (4, 16, 16), "mixed", [20]),
        on_gpu(BF16, (4, 128, 128), "softplus", LONG),
        on_gpu(BF16, (4, 64, 128), "mixed", LONG),
    ],
)
def test_the_backward_pass_gives_the_same_for_all_heads_at_once_and_one_by_one(
    dtype, dims, gate, lengths, device, monkeypatch
):
    x = random_problem(lengths, dims, dtype, device, named_gate(gate, sum(lengths), dims))
    together = run(x)
    monkeypatch.setattr(backward, "SLICE_ELEMENTS", 1)
    monkeypatch.setattr(backward, "SLICE_STATES", 1)
    assert backward.heads_together(dims[0], 16, sum(lengths), len(lengths)) == 1
    apart = run(x)
    assert together.keys() == apart.keys()
    for name in together:
        assert torch.equal(together[name], apart[name]), name


def test_heads_go_together_until_they_take_much_memory():
    together = backward.heads_together
    assert together(32, 128, 1000, 64) == 32  # little memory
    assert together(32, 128, 32768, 8) == 8
    assert together(32, 128, 2**20, 1) == 32  # one sequence: fewer heads would leave the GPU idle
    assert together(6, 128, 2**20, 1000) == 3


def test_a_batch_is_its_rows_packed_and_an_index_can_be_shared(device):
    x = random_problem([18, 18], (1, 16, 16), FP32, device)
    rows = [getattr(x, name).view(2, 18, *getattr(x, name).shape[1:]) for name in TOKENS]
    gate = {"A_log": x.a_log, "dt_bias": x.dt_bias, "use_gate_in_kernel": True}
    options = gate | {"use_qk_l2norm_in_kernel": True, "use_beta_sigmoid_in_kernel": True, "initial_state": x.initial}
    out, none = chunk_kda(*rows, **options)
    assert none is None
    want, _ = forward(x)
    assert torch.equal(out.flatten(0, 1), want)
    assert torch.equal(forward(x, cu_seqlens=None, index=ChunkIndex.build(x.cu_seqlens, 36))[0], want)
    assert torch.equal(forward(x, scale=0.25)[0], want)  # 16^-½
    assert torch.equal(forward(x, scale=0.5)[0], want * 2)


def test_without_an_initial_state_it_starts_from_zero(device):
    x = random_problem([18], (1, 16, 16), FP32, device)
    want, want_final = forward(replace(x, initial=torch.zeros_like(x.initial)))
    out, final = forward(x, initial_state=None)
    assert torch.equal(out, want)
    assert torch.equal(final, want_final)


def test_the_gradient_of_output_and_final_state_is_the_sum_of_either_alone(device):
    x = random_problem([18], (1, 16, 16), FP32, device)
    parts = []
    for keep in ((1, 0), (0, 1), (1, 1)):
        y = replace(x, **{name: t.clone().requires_grad_() for name, t in x.leaves().items()})
        results = forward(y)
        wanted = [(r, w) for r, w, k in zip(results, y.weights(*results), keep, strict=True) if k]
        leaves = [getattr(y, name) for name in LEAVES]
        parts.append(torch.autograd.grad([r for r, _ in wanted], leaves, [w for _, w in wanted]))
    for name, by_out, by_final, both in zip(LEAVES, *parts, strict=True):
        torch.testing.assert_close(by_out + by_final, both, rtol=1e-4, atol=1e-5, msg=name)
        assert norm(by_out) > 0
        assert (norm(by_final) > 0) == (name != "q"), name


def test_tokens_may_lie_apart_and_so_may_the_numbers_of_one(device):
    x = random_problem([18], (1, 16, 16), FP32, device)
    want = run(x)
    rows = {name: torch.cat([getattr(x, name)] * 3, -1) for name in ("q", "k", "v", "g")}
    sliced = replace(x, **{name: t[..., 16:32] for name, t in rows.items()})
    assert sliced.q.stride() == (48, 48, 1)
    turned = replace(x, **{name: getattr(x, name).mT.contiguous().mT for name in ("q", "k", "v", "g")})
    turned = replace(
        turned, beta=torch.stack([x.beta] * 2, -1)[..., 0], g=x.g.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    )
    for y in (sliced, turned):
        out, final = forward(y)
        assert torch.equal(out, want["out"])
        assert torch.equal(final, want["final"])


def test_no_tokens_at_all(device):
    x = random_problem([0, 0], (1, 16, 16), BF16, device)
    got = run(x)
    assert got["out"].shape == (0, 1, 16)
    assert torch.equal(got["final"], x.initial)
    assert all(norm(got[name]) == 0 for name in ("a_log", "dt_bias"))


@gpu_only
@pytest.mark.slow
@pytest.mark.parametrize("gate", ["softplus", "bounded"])
def test_a_long_sequence_is_no_less_exact_than_a_short_one(gate, device):
    short, long = (random_problem([length], (2, 128, 128), BF16, device, gate) for length in (1024, 32768))
    want = relative_errors(run(short), reference(short, chunked=True))
    got = relative_errors(run(long), reference(long, chunked=True))
    # The final state remembers the last tokens of either; one number per head is a matter of luck.
    assert all(got[name] <= 2 * want[name] for name in want if name != "a_log"), (want, got)
    assert got["a_log"] <= 1e-2


@gpu_only
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_hundred_thousand_short_sequences(dtype, device):
    lengths = (torch.arange(100_000) % 3 + 1).tolist()
    x = random_problem(lengths, (1, 16, 16), dtype, device)
    assert_near(run(x), reference(x, chunked=True), dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 2, 48), "k": torch.zeros(4, 2, 48), "g": torch.zeros(4, 2, 48)}, "head dims .* K = 48"),
        ({"v": torch.zeros(4, 2, 256)}, "head dims .* V = 256"),
        ({"k": torch.zeros(4, 2, 16).double()}, "fp32, bf16 and fp16; k is torch.float64"),
        ({"beta": torch.zeros(4, 2).long()}, "beta is torch.int64"),
        ({"a_log": None}, r"use_gate_in_kernel needs A_log \[H\] and dt_bias"),
        ({"dt_bias": None}, r"use_gate_in_kernel needs A_log \[H\] and dt_bias"),
        ({"lower_bound": 5.0}, "lower_bound must be below 0, got 5.0"),
        ({"lower_bound": 0.0}, "lower_bound must be below 0, got 0.0"),
        ({"a_log": torch.zeros(3)}, r"A_log and dt_bias must have H = 2 and H\*K = 32 elements: \(3, 32\)"),
        ({"dt_bias": torch.zeros(16)}, r"A_log and dt_bias must have H = 2 and H\*K = 32 elements: \(2, 16\)"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(changes, message):
    x = random_problem([4], (2, 16, 16), FP32, torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        forward(replace(x, **changes), use_gate_in_kernel=True)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"k": torch.zeros(4, 3, 16)}, "k"),
        ({"k": torch.zeros(4, 2, 32)}, "k"),
        ({"g": torch.zeros(5, 2, 16)}, "g"),
        ({"v": torch.zeros(4, 3, 16)}, "v"),
        ({"beta": torch.zeros(4, 3)}, "beta"),
        ({"initial": torch.zeros(1, 2, 16, 32)}, "initial_state"),
        ({"initial": torch.zeros(2, 2, 16, 16)}, "initial_state"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, name, device):
    """All larger than they should be, lest the kernels read what is not there."""
    x = random_problem([4], (2, 16, 16), FP32, device)
    with pytest.raises(ValueError, match=name):
        forward(replace(x, **{key: t.to(device) for key, t in changes.items()}))
