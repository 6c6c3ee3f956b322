"""Times, memory and errors on a GPU, for `kernels.py`."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from kernels_peers import Peer, Step
from kernels_workload import (
    DecodeInputs,
    Workload,
    check_workload,
    checked,
    decode_reference,
    make_decode_inputs,
    make_inputs,
    reference,
    rel_error,
    sample_rows,
)
from torch import Tensor

MIB = 2**20
Record = dict[str, Any]


def bench(fn: Callable[[], object], rep: int) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile in ms over `rep` ms of runs, between CUDA events, with a cold L2 cache."""
    from triton.testing import do_bench

    return tuple(do_bench(fn, warmup=25, rep=rep, quantiles=[0.5, 0.2, 0.8]))


def times(fn: Callable[[], object], rep: int, suffix: str = "") -> Record:
    median, low, high = bench(fn, rep)
    return {f"ms{suffix}": median, f"ms{suffix}_p20": low, f"ms{suffix}_p80": high}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a device-to-device copy of 2 GiB, read and written bytes counted."""
    source = torch.randn(2**29, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (bench(lambda: target.copy_(source), 200)[0] / 1e3)


def matmul_rate(device: torch.device, n: int = 8192) -> float:
    """Operations per second of a bf16 matrix product of random data."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / (bench(lambda: a @ b, 200)[0] / 1e3)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def with_peak(fn: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result of `fn`, MiB that stay allocated after it, and the most that was allocated meanwhile, above before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = fn()
    torch.cuda.synchronize()
    kept, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return result, (kept - before) / MIB, (peak - before) / MIB


def forward(peer: Peer, w: Workload, raw: bool, device: torch.device, rep: int) -> Record:
    """Time, memory and error of a forward pass that keeps nothing for a backward pass."""
    with torch.no_grad():
        record = _forward(peer, w, raw, device, rep)
    free()
    return record | forward_errors(peer, check_workload(w), raw, device)


def _forward(peer: Peer, w: Workload, raw: bool, device: torch.device, rep: int) -> Record:
    x = peer.prepare(make_inputs(w, device, raw))
    start = time.perf_counter()
    peer.forward(x)  # compiles and tunes, at full size
    torch.cuda.synchronize()
    record: Record = {"first_call_s": time.perf_counter() - start}
    out, kept, peak = with_peak(lambda: peer.forward(x))
    record |= {"out_mib": kept, "peak_mib": peak, "rows": {"out": sample_rows(out)}}
    return record | times(lambda: peer.forward(x), rep)


def forward_errors(peer: Peer, w: Workload, raw: bool, device: torch.device) -> Record:
    """Relative error of the output on `w`."""
    x = make_inputs(w, device, raw, seed=1)
    with torch.no_grad():
        out = peer.forward(peer.prepare(x))
        return {"errors": {"out": rel_error(checked("out", out, w.dim), reference(x)[0])}}


def backward(peer: Peer, w: Workload, raw: bool, device: torch.device, rep: int) -> Record:
    """Time of the backward pass and of both passes, memory that is saved and transient, and errors of all gradients."""
    record = _backward(peer, w, raw, device, rep)
    free()
    return record | backward_errors(peer, check_workload(w), raw, device)


def _backward(peer: Peer, w: Workload, raw: bool, device: torch.device, rep: int) -> Record:
    x = make_inputs(w, device, raw).with_grad()
    leaves = x.leaves()
    d_out = out_gradient(x.v)
    x = peer.prepare(x)

    def grads_of(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, list(leaves.values()), d_out, retain_graph=True)

    start = time.perf_counter()
    grads_of(peer.forward(x))  # compiles and tunes
    torch.cuda.synchronize()
    record: Record = {"first_call_s": time.perf_counter() - start}
    out, kept, _ = with_peak(lambda: peer.forward(x))
    grads, _, peak = with_peak(lambda: grads_of(out))
    record |= {"saved_mib": kept - out.nbytes / MIB, "peak_mib": peak}
    record["rows"] = {name: sample_rows(grad) for name, grad in zip(leaves, grads, strict=True)}
    record |= times(lambda: grads_of(out), rep)
    return record | times(lambda: grads_of(peer.forward(x)), rep, "_both")


def out_gradient(like: Tensor) -> Tensor:
    """Random, the same for every peer."""
    gen = torch.Generator(like.device).manual_seed(2)
    return torch.randn(like.shape, generator=gen, device=like.device, dtype=like.dtype)


def backward_errors(peer: Peer, w: Workload, raw: bool, device: torch.device) -> Record:
    """Relative errors of the output and all gradients on `w`."""
    x = make_inputs(w, device, raw, seed=1).with_grad()
    d_out = out_gradient(x.v)
    out = peer.forward(peer.prepare(x))
    grads = torch.autograd.grad(out, list(x.leaves().values()), d_out)
    ref, ref_grads = reference(x, d_out)
    errors = {"out": rel_error(checked("out", out.detach(), w.dim), ref)}
    for name, grad in zip(x.leaves(), grads, strict=True):
        errors[name] = rel_error(checked(name, grad, w.dim), ref_grads[name])
    return {"errors": errors}


def decode(peer: Peer, batch: int, layer: bool, form: str, heads: int, device: torch.device, rep: int) -> Record:
    """Time of one decoding step of one layer inside a CUDA graph, averaged over the positions of a chunk.

    A graph holds the steps of as many layers, each with its own state, as do not fit the L2 cache together, as they
    would not in a model.
    """
    with torch.no_grad():
        one = make_decode_inputs(batch, heads, device)
        layers = max(2, min(64, -(-256 * MIB // one.state.nbytes)))
        steps = [peer.decode(one, layer, form) for _ in range(layers)]
        medians = [graph_time(steps, position, rep) / layers for position in range(peer.forms[form])]
    return {"ms": statistics.mean(medians), "ms_positions": medians, "layers": layers}


def graph_time(steps: list[Step], position: int, rep: int) -> float:
    """Median time in ms of a replay of a graph of all `steps`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in steps[:2]:
            step.run(position)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step.run(position)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    first = statistics.median(replay() for _ in range(5))
    return statistics.median(replay() for _ in range(max(10, min(200, int(rep / max(first, 1e-3))))))


def decode_errors(peer: Peer, layer: bool, form: str, heads: int, device: torch.device) -> dict[str, float]:
    """Relative error of output and, where the form keeps it up to date, state after 3 steps at batch 128.

    To be called first: it also compiles and tunes, and fla tunes for the first batch size it sees.
    """
    with torch.no_grad():
        d = make_decode_inputs(128, heads, device)
        step = peer.decode(d, layer, form)
        for position in range(3):
            out = step.run(position)
        some = slice(0, 8)
        ref, state = decode_reference(first_rows(d, some), layer, 3)
        errors = {"out": rel_error(out[some], ref)}
        if form == "recurrent":
            errors["state"] = rel_error(step.state()[some], state)
    return errors


def first_rows(d: DecodeInputs, rows: slice) -> DecodeInputs:
    """The inputs of some sequences."""
    per_sequence = ("x", "window", "g", "beta", "gate", "state")
    return DecodeInputs(**{n: y[rows] if n in per_sequence else y for n, y in vars(d).items()})
