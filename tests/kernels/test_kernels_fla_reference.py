"""Against flash-linear-attention's own references, read from its file `fla/ops/kda/naive.py` and nothing else of it.

Importing the package itself on a machine without a GPU makes transformers' hybrid models fail, so it is not a test
dependency. To run this file: `pip install --no-deps --target DIR "flash-linear-attention==0.6.*" "fla-core==0.6.*"
einops` and `DELTARL_FLA_PATH=DIR pytest tests/kernels`.
"""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kda_inputs import constant_gate, mixed_gate, random_inputs, relative_error

from deltarl.kernels.kda import kda

NAIVE = "fla/ops/kda/naive.py"


def reference_file() -> Path:
    candidates = []
    if folder := os.environ.get("DELTARL_FLA_PATH"):
        candidates.append(Path(folder) / NAIVE)
    for name in ("fla-core", "flash-linear-attention"):
        try:
            candidates.append(Path(str(importlib.metadata.distribution(name).locate_file(NAIVE))))
        except importlib.metadata.PackageNotFoundError:
            continue
    for file in candidates:
        if file.is_file():
            return file
    pytest.skip("flash-linear-attention is not installed, nor found under DELTARL_FLA_PATH")


@pytest.fixture
def naive(monkeypatch) -> ModuleType:
    file = reference_file()
    if folder := os.environ.get("DELTARL_FLA_PATH"):
        monkeypatch.setattr("sys.path", [*sys.path, folder])  # for einops; fla itself is never imported
    spec = importlib.util.spec_from_file_location("fla_naive_kda", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class DoubleTorch:
    """torch, except that `torch.float`, the dtype the references compute in, is fp64."""

    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("strength", [-1e-3, -1.0, -20.0, None])
@pytest.mark.parametrize("backend", ["chunk", "recurrent"])
def test_ours_equals_the_references_of_flash_linear_attention(naive, backend, strength, dtype, tolerance):
    length = 128
    gate = mixed_gate(length) if strength is None else constant_gate(strength)
    x = random_inputs([length], gate).to(dtype)
    tokens = [t.unsqueeze(0) for t in x.tokens(slice(None))]
    options = {"initial_state": x.state, "output_final_state": True}
    out, state = kda(*tokens, **options, backend=backend)
    if dtype == torch.float64:
        naive.torch = DoubleTorch()
    references = {"recurrent": naive.naive_recurrent_kda(*tokens, **options)}
    # Their chunkwise reference overflows above its diagonal where a 64-token chunk decays by more than e^88.
    if strength in (-1e-3, -1.0):
        references["chunk"] = naive.naive_chunk_kda(*tokens, **options)
    for name, (want, want_state) in references.items():
        assert relative_error(out, want) < tolerance, name
        assert relative_error(state, want_state) < tolerance, name
