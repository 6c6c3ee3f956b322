"""The Triton kernels run on the GPU if there is one, and otherwise in Triton's interpreter, on the CPU."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when it decorates a function, its own library's functions included, hence on import.
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton is imported already; set TRITON_INTERPRET=1 or run tests/kernels/gpu by itself")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
