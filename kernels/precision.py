"""Facts about rounding that keep sampler and learner on the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Matrix products round the same for any batch of at least this many rows (seen with MKL on x86; below it another
# kernel is chosen). Smaller batches are filled up, so that a sample does not depend on its company.
MIN_ROWS = 16


def core_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the recurrence, its state and the attention product, for inputs of `dtype`.

    The learner runs these in chunked form, the sampler a row at a time; the two are equal in exact arithmetic but add
    in another order. On a CPU they compute in fp64 and round to fp32 once, at the end: both then arrive at the same
    fp32 number nearly always, and the log-probabilities agree. What it costs is measured by
    benchmarks/core_precision.py. On a GPU, where fp64 is slow, they compute in fp32.
    """
    single = torch.promote_types(dtype, torch.float32)
    return torch.float64 if device.type == "cpu" and not _no_sampler_to_match else single


_no_sampler_to_match = False


@contextmanager
def without_sampler() -> Iterator[None]:
    """Within, the core computes in fp32 on a CPU too: for training that no sampler has to agree with."""
    global _no_sampler_to_match
    before, _no_sampler_to_match = _no_sampler_to_match, True
    try:
        yield
    finally:
        _no_sampler_to_match = before
