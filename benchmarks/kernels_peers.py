"""The implementations that `kernels.py` compares, behind one interface each.

What a layer has to do in every step is inside `forward` and so timed; what it does once per batch (index tensors of
packed sequences) or what is mere layout is in `prepare` and not timed. A comment says so wherever a peer wants
something converted. Each may raise anything: the caller reports it.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from kernels_workload import NORM_EPS, DecodeInputs, Inputs
from torch import Tensor

from deltarl.kernels.gate import l2norm, log_decay


@dataclass
class Step:
    """A decoding step on buffers of its own: `run(position)` gives the output `[B, H, D]`, `state()` `[B, H, K, V]`."""

    run: Callable[[int], Tensor]
    state: Callable[[], Tensor]


class Peer:
    """An implementation. `forward` is differentiable where gradients are enabled; `decode` need not be there."""

    name = ""
    packages: tuple[str, ...] = ()
    forms: dict[str, int] = {}  # noqa: RUF012  # decoding forms, and positions in a chunk to average over

    def available(self) -> str | None:
        """None, or why this cannot run here."""
        if not torch.cuda.is_available():
            return "no CUDA GPU"
        try:
            return self.load()
        except Exception as error:
            return f"import failed: {type(error).__name__}: {error}"

    def load(self) -> str | None:
        """Imports the implementation; None, or why it cannot run here."""
        raise NotImplementedError  # each peer has its own

    def lacks(self, raw: bool, lower_bound: float | None, backward: bool) -> str | None:
        """Why this does not take part in a comparison, or None."""
        return None

    def prepare(self, x: Inputs) -> Inputs:
        """What is not timed."""
        return x

    def forward(self, x: Inputs) -> Tensor:
        """Output `[B, T, H, D]`."""
        raise NotImplementedError  # each peer has its own

    def decode(self, d: DecodeInputs, layer: bool, form: str) -> Step:
        """A step of the recurrence alone (`d.x` is past the convolution), or with convolution and gated norm."""
        raise NotImplementedError  # each peer has its own

    def note(self) -> str:
        """Something worth printing beside the results."""
        return ""


class Deltarl(Peer):
    """This repository."""

    name = "deltarl"
    forms = {"replay": 16, "recurrent": 1}  # noqa: RUF012

    def load(self) -> str | None:
        self.chunk = importlib.import_module("deltarl.kernels.gpu.chunk")
        self.index = importlib.import_module("deltarl.kernels.gpu.index").ChunkIndex
        return None

    def prepare(self, x: Inputs) -> Inputs:
        # Index tensors are made once per batch and shared by the layers. fla caches its own in the same way.
        batch, length = x.q.shape[:2]
        if x.cu_seqlens is None:
            x.extra["index"] = self.index.of_batch(batch, length, x.q.device)
        else:
            x.extra["index"] = self.index.build(x.cu_seqlens, length)
        return x

    def forward(self, x: Inputs) -> Tensor:
        out, _ = self.chunk.chunk_kda(
            x.q, x.k, x.v, x.g, x.beta, A_log=x.A_log, dt_bias=x.dt_bias, lower_bound=x.lower_bound if x.raw else None,
            use_qk_l2norm_in_kernel=x.raw, use_gate_in_kernel=x.raw, use_beta_sigmoid_in_kernel=x.raw,
            cu_seqlens=x.cu_seqlens, index=x.extra["index"],
        )  # fmt: skip
        return out

    def decode(self, d: DecodeInputs, layer: bool, form: str) -> Step:
        if not layer:
            raise ValueError("convolution and norm are part of the one kernel there is")
        step = importlib.import_module("deltarl.kernels.gpu.decode").decode_step
        gate = importlib.import_module("deltarl.kernels.gpu.gate").Gate.of(d.A_log, d.dt_bias, None, True)
        batch, heads, dim = d.shape
        slots = importlib.import_module("deltarl.kernels.gpu.slots").SlotState.empty(
            batch, heads, dim, dim, d.x.dtype, d.x.device
        )
        slots.state.copy_(d.state)
        # Of the positions before a chunk's start, 13, 14 and 15, each input at its place in a ring of 4.
        window = torch.cat([d.window[..., :1], d.window], dim=-1).transpose(1, 2).contiguous()
        rows = torch.arange(batch, device=d.x.device)
        positions = [torch.full_like(rows, 16 + p) for p in range(16)]

        def run(position: int) -> Tensor:
            return step(
                d.x, d.g, d.beta, d.gate, conv_weight=d.weight, gate=gate, norm_weight=d.norm, eps=NORM_EPS,
                window=window, state=slots, slots=rows, position=positions[position], recurrent=form == "recurrent",
            )  # fmt: skip

        return Step(run, lambda: slots.state)


class Fla(Peer):
    """flash-linear-attention's Triton kernels, called as its layer calls them (state V first)."""

    name = "fla"
    packages = ("fla-core",)
    forms = {"recurrent": 1}  # noqa: RUF012

    def load(self) -> str | None:
        load_fla()
        self.chunk_kda = importlib.import_module("fla.ops.kda").chunk_kda
        return None

    def prepare(self, x: Inputs) -> Inputs:
        x.extra["cu"] = None if x.cu_seqlens is None else x.cu_seqlens.long()
        return x

    def forward(self, x: Inputs) -> Tensor:
        out, _ = self.chunk_kda(
            x.q, x.k, x.v, x.g, x.beta, A_log=x.A_log, dt_bias=x.dt_bias,
            use_qk_l2norm_in_kernel=x.raw, use_gate_in_kernel=x.raw, use_beta_sigmoid_in_kernel=x.raw,
            safe_gate=x.lower_bound is not None, lower_bound=x.lower_bound, state_v_first=True,
            cu_seqlens=x.extra["cu"],
        )  # fmt: skip
        return out

    def decode(self, d: DecodeInputs, layer: bool, form: str) -> Step:
        # The low-level function, as vLLM calls it: a pool of states updated in place by index, and a given output
        # (the public one allocates a state and zeros the output at each step).
        recurrent = importlib.import_module("fla.ops.kda.fused_recurrent").fused_recurrent_kda_fwd
        batch, heads, dim = d.shape
        pool, slots = d.state.mT.contiguous(), torch.arange(batch, dtype=torch.int32, device=d.x.device)
        qkv = [y.view(batch, 1, heads, dim) for y in d.x.view(batch, 3, -1).transpose(0, 1).contiguous()]
        g, beta = d.g[:, None].contiguous(), d.beta[:, None].contiguous()
        out = torch.empty_like(qkv[2])
        convs = (
            [FlaConv(d, part) for part in range(3)] if layer else []
        )  # one launch each: the kernel wants q, k, v packed

        def run(position: int) -> Tensor:
            rows = [conv() for conv in convs] if layer else qkv
            q, k, v = (y.view(batch, 1, heads, dim) for y in rows)
            recurrent(
                q=q, k=k, v=v, g=g, beta=beta, A_log=d.A_log, dt_bias=d.dt_bias, initial_state=pool,
                inplace_final_state=True, state_v_first=True, ssm_state_indices=slots, use_qk_l2norm_in_kernel=True,
                use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, out=out,
            )  # fmt: skip
            return fla_norm(out[:, 0], d) if layer else out[:, 0]

        return Step(run, lambda: pool.mT)


class AttnGym(Peer):
    """attention-gym. Its layer composes l2norm, gate and core from ops of its own; decoding is one kernel."""

    name = "attn_gym"
    packages = ("attn-gym", "nvidia-cutlass-dsl")
    forms = {"recurrent": 1}  # noqa: RUF012

    def load(self) -> str | None:
        self.cute = load_attn_gym()
        self.kda = importlib.import_module("attn_gym.linear.kda")
        self.unit = importlib.import_module("attn_gym.linear.kda.fwd.triton.l2norm_fwd").l2norm
        self.gate = importlib.import_module("attn_gym.linear._delta_rule.gate").gate_transform
        return None

    def lacks(self, raw: bool, lower_bound: float | None, backward: bool) -> str | None:
        if backward and not self.cute:
            return "not available: a kernel of its backward pass needs nvidia-cutlass-dsl"
        return None

    def forward(self, x: Inputs) -> Tensor:
        q, k, g, beta = x.q, x.k, x.g, x.beta
        if x.raw:  # timed: each of these is a launch of every layer
            q, k, beta = self.unit(q), self.unit(k), beta.float().sigmoid()
            if x.lower_bound is None:
                g = self.gate(g, x.A_log, x.dt_bias.view(q.shape[2:]), kind="softplus")
            elif self.cute:
                g = self.gate(g, x.A_log, x.dt_bias.view(q.shape[2:]), kind="bounded", lower_bound=x.lower_bound)
            else:
                g = decay(x)  # its own kernel for the bounded gate is CuTe
        return self.kda.chunk_kda(q, k, x.v, g, beta, cu_seqlens=x.cu_seqlens)[0]

    def decode(self, d: DecodeInputs, layer: bool, form: str) -> Step:
        batch, heads, dim = d.shape
        # Slot 0 is its padding slot.
        pool = torch.cat([torch.zeros_like(d.state[:1]), d.state]).mT.contiguous()
        slots = torch.arange(1, batch + 1, dtype=torch.int32, device=d.x.device)
        g, beta, bias = d.g[None].contiguous(), d.beta[None].contiguous(), d.dt_bias.view(heads, dim)
        out = d.x.new_empty(1, batch, heads, dim)
        conv: Callable[[], Tensor] | None = None
        if layer and self.cute:
            window = torch.cat([torch.zeros_like(d.window[:1]), d.window]).mT.contiguous()
            one = importlib.import_module("attn_gym.linear.short_conv").causal_conv1d_decode
            conv = lambda: one(d.x, d.weight, window, activation="silu", state_indices=slots)  # noqa: E731
        elif layer:
            conv = FlaConv(d)

        def run(position: int) -> Tensor:
            qkv = d.x if conv is None else conv().view(batch, -1)
            self.kda.recurrent_kda_decode(qkv, g, beta, d.A_log, bias, pool, slots, gate_transform="softplus", out=out)
            return fla_norm(out[0], d) if layer else out[0]  # it has no gated norm

        return Step(run, lambda: pool[1:].mT)

    def note(self) -> str:
        return "" if self.cute else "convolution, gated norm and bounded gate: fla's"


class Cudnn(Peer):
    """cuDNN frontend's `kda_hopper_cuda`: fused CUDA C++ compiled by NVRTC, forward and backward."""

    name = "cudnn"
    plan = "kda_hopper_cuda"
    packages = ("nvidia-cudnn-frontend", "nvidia-cudnn-cu13")

    def load(self) -> str | None:
        # NVRTC needs crt/mma.h too, which torch's own package of headers, found first, does not have.
        nvcc = shutil.which("nvcc")
        for root in (Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])):
            if (root / "include/crt/mma.h").exists():
                os.environ.setdefault("CUDA_HOME", str(root))
        self.kda = importlib.import_module("cudnn.linear_attention.ops").kimi_delta_attention
        return None

    def prepare(self, x: Inputs) -> Inputs:
        batch, length = x.q.shape[:2]
        bounds = torch.arange(batch + 1, dtype=torch.int32, device=x.q.device) * length
        x.extra["cu"] = bounds if x.cu_seqlens is None else x.cu_seqlens
        return x

    def forward(self, x: Inputs) -> Tensor:
        q, k, g, beta = x.q, x.k, x.g, x.beta
        options: dict[str, Any] = {}
        if x.raw and torch.is_grad_enabled():
            # Its backward takes normalised q and k, log g and β in fp32, after the sigmoid; timed.
            q, k, g, beta = unit(q), unit(k), decay(x), beta.float().sigmoid()
        elif x.raw:
            # bf16 g and β are converted to fp32 inside. It has no softplus gate: timed, outside of its kernel.
            options = {"use_qk_l2norm_in_kernel": True, "use_beta_sigmoid_in_kernel": True}
            if x.lower_bound is None:
                g = decay(x)
            else:
                options |= {"safe_gate": True, "gate_lower_bound": x.lower_bound}
                options |= {"a_log": x.A_log, "dt_bias": x.dt_bias.view(q.shape[2:])}
        tokens = [y.flatten(0, 1) for y in (q, k, x.v, g, beta)]
        return self.kda(*tokens, x.extra["cu"], plan_name=self.plan, **options)[0].view_as(x.v)


class CudnnCute(Cudnn):
    """cuDNN frontend's `kda_hopper`, in the CuTe DSL: forward of the core only."""

    name = "cudnn-cute"
    plan = "kda_hopper"
    packages = ("nvidia-cudnn-frontend", "nvidia-cutlass-dsl")

    def load(self) -> str | None:
        return super().load() if find_spec("cutlass") else "needs nvidia-cutlass-dsl"

    def lacks(self, raw: bool, lower_bound: float | None, backward: bool) -> str | None:
        return "takes normalised q and k, log g and β only" if raw else "forward only" if backward else None


class FlashKda(Peer):
    """Moonshot's CUTLASS forward kernels."""

    name = "flash_kda"
    packages = ("flash-kda",)

    def load(self) -> str | None:
        if not find_spec("flash_kda"):
            return "not on PyPI, to be built from source"
        self.fwd = importlib.import_module("flash_kda").fwd
        return None

    def lacks(self, raw: bool, lower_bound: float | None, backward: bool) -> str | None:
        return None if raw and lower_bound is not None and not backward else "forward of the bounded gate only"

    def prepare(self, x: Inputs) -> Inputs:
        x.extra["cu"] = None if x.cu_seqlens is None else x.cu_seqlens.long()
        return x

    def forward(self, x: Inputs) -> Tensor:
        assert x.dt_bias is not None
        out, dim = torch.empty_like(x.v), x.q.shape[-1]
        self.fwd(
            x.q, x.k, x.v, x.g, x.beta, dim**-0.5, out, A_log=x.A_log, dt_bias=x.dt_bias.view(-1, dim),
            lower_bound=x.lower_bound, initial_state=None, final_state=None, cu_seqlens=x.extra["cu"],
        )  # fmt: skip
        return out


PEERS: dict[str, type[Peer]] = {p.name: p for p in (Fla, Deltarl, AttnGym, Cudnn, CudnnCute, FlashKda)}


def load_fla() -> None:
    """Makes fla importable without its layers and models, which would import transformers."""
    os.environ.setdefault("FLA_FLASH_KDA", "0")
    for name in ("fla.layers", "fla.models"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: importing it fails
    importlib.import_module("fla.ops.kda")


def load_attn_gym() -> bool:
    """Imports attention-gym's fused kernels; False if its CuTe kernels had to be left out.

    On Hopper the forward pass is Triton throughout, the backward pass except for its last kernel, but the modules
    import the Blackwell kernels too, and those nvidia-cutlass-dsl. Without it these modules are replaced by empty ones.
    """
    root = "attn_gym.linear.kda."
    try:
        importlib.import_module(root + "bwd.cute.chunk_kda_bwd")
    except Exception:  # also one that is there but does not work
        for name in ("fwd.cute.chunk_kda_fwd_inter_solve", "fwd.cute.chunk_kda_fwd_intra_engine",
                     "bwd.cute.chunk_delta_h_bwd", "bwd.cute.chunk_kda_bwd_intra",
                     "bwd.cute.chunk_kda_bwd_wy_dqkg_fused"):  # fmt: skip
            sys.modules[root + name] = _Absent(root + name)
    else:
        return True
    for name in ("fwd.cute.chunk_kda_fwd", "bwd.cute.chunk_kda_bwd"):
        importlib.import_module(root + name)
    return False


class _Absent(ModuleType):
    """A module whose functions say that they are not there."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} needs nvidia-cutlass-dsl")

        return absent


def unit(x: Tensor) -> Tensor:
    """L2 norm over channels, differentiable: fla's kernel if fla is there."""
    try:
        load_fla()
    except ImportError:
        return l2norm(x.float()).to(x.dtype)
    return importlib.import_module("fla.modules.norm.l2norm").l2norm(x)


def decay(x: Inputs) -> Tensor:
    """Log decay in fp32, differentiable: fla's kernel if fla is there."""
    assert x.A_log is not None
    assert x.dt_bias is not None
    try:
        load_fla()
    except ImportError:
        return log_decay(x.g, x.A_log, x.dt_bias, x.lower_bound)
    return importlib.import_module("fla.ops.kda.gate").fused_kda_gate(x.g, x.A_log, x.dt_bias, x.lower_bound)


class FlaConv:
    """fla's convolution step on one third of the channels (q, k or v), or on all of them in one launch."""

    def __init__(self, d: DecodeInputs, part: int | None = None) -> None:
        load_fla()
        self.update = importlib.import_module("fla.modules.causal_conv1d").causal_conv1d_update
        third = d.x.shape[1] // 3
        rows = slice(None) if part is None else slice(part * third, (part + 1) * third)
        self.x, self.weight = d.x[:, None, rows], d.weight[rows].contiguous()
        # Its cache holds as many inputs as there are taps; the oldest is never used.
        self.cache = torch.cat([d.window[..., :1], d.window], dim=-1)[:, rows].contiguous()

    def __call__(self) -> Tensor:
        return self.update(x=self.x, cache=self.cache, weight=self.weight, activation="silu")[0]


def fla_norm(x: Tensor, d: DecodeInputs) -> Tensor:
    """fla's fused RMS norm with sigmoid output gate."""
    norm = importlib.import_module("fla.modules.norm.fused_norm_gate").rms_norm_gated
    return norm(x, d.gate, d.norm, None, activation="sigmoid", eps=NORM_EPS)
