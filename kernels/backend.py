"""Which implementation runs, Triton kernels or PyTorch: chosen by device, dtype and shape, or by the environment."""

import importlib.util
import logging
import os
from functools import cache

import torch

BACKENDS = ("triton", "chunk", "recurrent")
VARIABLE = "DELTARL_KDA_BACKEND"
HEAD_DIMS = (16, 32, 64, 128)  # what the Triton kernels take
MAX_RANK, MAX_ROPE = 512, 64  # of latent attention
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)


def choose_backend(
    device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int, wanted: str | None = None
) -> str:
    """One of `BACKENDS`: `wanted`, else what the environment variable DELTARL_KDA_BACKEND says, else what fits best.

    "triton" are the GPU kernels, "chunk" the chunkwise form in PyTorch, "recurrent" the definition, token by token.
    Says in the log, once for each kind of input, what it chose and why.

    Raises:
        ValueError: the name is unknown, or "triton" is asked for where it cannot run.
    """
    forced = wanted or os.environ.get(VARIABLE)
    if forced and forced not in BACKENDS:
        raise ValueError(f"unknown KDA backend {forced!r}; choose one of {', '.join(BACKENDS)}")
    obstacle = _triton_obstacle(device.type, dtype, key_dim, value_dim)
    if forced == "triton" and obstacle:
        raise ValueError(f"the KDA backend 'triton' cannot be used: {obstacle}; choose 'chunk'")
    choice = forced or ("chunk" if obstacle else "triton")
    reason = f"asked for ({VARIABLE} or argument)" if forced else obstacle or "it runs on this device"
    _say_once(choice, device.type, str(dtype), key_dim, value_dim, reason)
    return choice


def use_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether what goes with the recurrence (latent attention, token log-probs) runs in Triton too.

    It does where the kernels can run, unless DELTARL_KDA_BACKEND asks for PyTorch.
    """
    return os.environ.get(VARIABLE) in (None, "", "triton") and _device_obstacle(device.type, dtype) is None


def _triton_obstacle(device: str, dtype: torch.dtype, key_dim: int, value_dim: int) -> str | None:
    if key_dim not in HEAD_DIMS or value_dim not in HEAD_DIMS:
        return _device_obstacle(device, dtype) or (
            f"the kernels take head dims {HEAD_DIMS}, not K = {key_dim}, V = {value_dim}"
        )
    return _device_obstacle(device, dtype)


def _device_obstacle(device: str, dtype: torch.dtype) -> str | None:
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get(VARIABLE) == "triton"
    if device != "cuda" and not interpreted:
        return f"the tensors are on the {device}"
    if dtype not in FLOATS:
        return f"the kernels take fp32, bf16 and fp16, not {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda" and torch.cuda.is_available():
        if torch.version.hip is not None:
            return "the kernels are for NVIDIA GPUs"
        if torch.cuda.get_device_capability() < (8, 0):
            return "the kernels need compute capability 8.0"
    return None


@cache
def _say_once(choice: str, device: str, dtype: str, key_dim: int, value_dim: int, reason: str) -> None:
    _log.info("KDA backend: %s for %s on %s, K=%d V=%d (%s)", choice, dtype, device, key_dim, value_dim, reason)
