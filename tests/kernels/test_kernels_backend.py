"""One place chooses the implementation, can be told, and says once what it chose."""

import logging

import pytest
import torch
from kda_inputs import relative_error

from deltarl.kernels.backend import VARIABLE, _say_once, choose_backend, use_triton
from deltarl.kernels.kda import kda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("device", "dtype", "dims", "want"),
    [
        (CPU, torch.float32, (128, 128), "chunk"),
        (CUDA, torch.bfloat16, (128, 128), "triton"),
        (CUDA, torch.float16, (32, 64), "triton"),
        (CUDA, torch.float64, (128, 128), "chunk"),
        (CUDA, torch.bfloat16, (96, 128), "chunk"),
        (CUDA, torch.bfloat16, (128, 256), "chunk"),
    ],
)
def test_device_dtype_and_shape_choose(device, dtype, dims, want):
    assert choose_backend(device, dtype, *dims) == want


def test_the_environment_and_the_argument_force_a_choice(monkeypatch):
    monkeypatch.setenv(VARIABLE, "recurrent")
    assert choose_backend(CUDA, torch.bfloat16, 128, 128) == "recurrent"
    assert choose_backend(CUDA, torch.bfloat16, 128, 128, "chunk") == "chunk"
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="unknown KDA backend 'fastest'; choose one of triton, chunk, recurrent"):
        choose_backend(CPU, torch.float32, 128, 128)


@pytest.mark.parametrize(
    ("device", "dtype", "dims", "why"),
    [
        (CPU, torch.float32, (128, 128), "the tensors are on the cpu"),
        (CUDA, torch.float64, (128, 128), "not torch.float64"),
        (CUDA, torch.bfloat16, (24, 128), "not K = 24, V = 128"),
    ],
)
def test_triton_where_it_cannot_run_is_refused_with_the_reason(device, dtype, dims, why, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"{why}.*; choose 'chunk'"):
        choose_backend(device, dtype, *dims, "triton")


def test_a_choice_is_said_once(caplog):
    _say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="deltarl.kernels.backend"):
        for _ in range(3):
            choose_backend(CPU, torch.float32, 128, 128)
        choose_backend(CUDA, torch.bfloat16, 128, 128)
    assert [r.getMessage() for r in caplog.records] == [
        "KDA backend: chunk for torch.float32 on cpu, K=128 V=128 (the tensors are on the cpu)",
        "KDA backend: triton for torch.bfloat16 on cuda, K=128 V=128 (it runs on this device)",
    ]


def test_kda_takes_every_backend_to_the_same_numbers(monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 20, 1, 16) for _ in range(3))
    tokens = [q, k, v, -torch.rand(1, 20, 1, 16), torch.rand(1, 20, 1)]
    options = {"initial_state": torch.randn(1, 1, 16, 16), "output_final_state": True, "use_qk_l2norm": True}
    want, state = kda(*tokens, **options, backend="chunk")
    monkeypatch.setenv(VARIABLE, "triton")
    got, got_state = kda(*tokens, **options)
    assert not torch.equal(got, want)  # another implementation rounds differently
    assert relative_error(got, want) < 1e-6
    assert relative_error(got_state, state) < 1e-6


def test_what_goes_with_the_recurrence_follows_the_same_choice(monkeypatch):
    assert use_triton(CUDA, torch.bfloat16)
    assert not use_triton(CUDA, torch.float64)
    assert not use_triton(CPU, torch.float32)
    monkeypatch.setenv(VARIABLE, "chunk")
    assert not use_triton(CUDA, torch.bfloat16)
