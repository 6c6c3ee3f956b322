"""Compiles Triton kernels in parallel before `kernels.py` measures, so that tuning only has to time them.

python benchmarks/kernels_warm.py PEER SHARD SHARDS

Triton compiles the configurations of a tuned kernel one after the other. Here each of several processes compiles its
share of them, into Triton's cache on disk, and launches none. fla's kernels are compiled for short sequences, which
makes no difference to their code; other peers at full size, because theirs depends on it.
"""

import importlib
import shutil
import sys
from dataclasses import replace
from typing import Any

import torch
from kernels_peers import PEERS, Peer
from kernels_report import HEADS
from kernels_workload import PREFILL, TRAIN, Workload, check_workload, make_decode_inputs, make_inputs
from triton.runtime.autotuner import Autotuner


def compile_share(shard: int, shards: int) -> None:
    """Makes tuned kernels compile a share of their configurations instead of running."""
    done: set[tuple[Any, ...]] = set()

    def run(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs)[shard::shards]:
            try:
                self.fn.run(*args, **(kwargs | config.all_kwargs() | {"warmup": True}))
            except Exception as error:  # a configuration that does not fit: tuning will skip it too
                key = (self.base_fn.__name__, type(error))
                if key not in done:
                    done.add(key)
                    print(f"{key[0]}: {type(error).__name__}: {str(error)[:200]}", flush=True)

    Autotuner.run = run


def attempt(what: str, fn: Any) -> None:
    try:
        fn()
        torch.cuda.synchronize()
    except Exception as error:  # results are garbage, as nothing ran; what matters is compiled by then
        print(f"{what}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def both_passes(peer: Peer, w: Workload, raw: bool, device: torch.device, backward: bool) -> None:
    with torch.no_grad():
        peer.forward(peer.prepare(make_inputs(w, device, raw)))
    if backward and not peer.lacks(raw, w.lower_bound, True):
        x = make_inputs(w, device, raw).with_grad()
        out = peer.forward(peer.prepare(x))
        torch.autograd.grad(out, list(x.leaves().values()), torch.ones_like(out))


def norms(w: Workload, device: torch.device) -> None:
    """fla's L2 norm, whose code depends on the number of rows."""
    from fla.modules.norm.l2norm import l2norm_bwd, l2norm_fwd

    x = torch.empty(w.token_heads, w.dim, device=device, dtype=torch.bfloat16)
    _, rstd = l2norm_fwd(x)
    l2norm_bwd(x, rstd, x.float())


def short(w: Workload) -> Workload:
    return replace(w, batch=1, length=256, lengths=(100, 156) if w.lengths else ())


def main() -> None:
    name, shard, shards = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = torch.device("cuda")
    peer = PEERS[name]()
    if reason := peer.available():
        print(f"{name}: {reason}")
        return
    compile_share(shard, shards)
    for w in (*TRAIN, *PREFILL):
        for raw in (True, False) if w in TRAIN else (True,):
            if peer.lacks(raw, w.lower_bound, False):
                continue
            for size in (short(w),) if name == "fla" else (w, check_workload(w)):
                attempt(f"{w.name} raw={raw}", lambda s=size, r=raw, w=w: both_passes(peer, s, r, device, w in TRAIN))
        if name == "fla":
            attempt("norms", lambda w=w: norms(w, device))
            attempt("norms", lambda w=w: norms(check_workload(w), device))
    for form in peer.forms:
        d = make_decode_inputs(128, HEADS, device)
        attempt("decode", lambda f=form, d=d: peer.decode(d, True, f).run(0))
    if name == "attn_gym":  # what it tuned itself, it tuned while other processes used the device
        shutil.rmtree(importlib.import_module("attn_gym._backends.cute.cache").get_cache_path() / "winners", True)


if __name__ == "__main__":
    main()
