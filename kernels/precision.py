"""Facts about rounding that keep sampler and learner on the same numbers."""

import torch

# Matrix products round the same for any batch of at least this many rows (seen with MKL on x86; below it another
# kernel is chosen). Smaller batches are filled up, so that a sample does not depend on its company.
MIN_ROWS = 16


def core_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the recurrence, its state and the attention product, for inputs of `dtype`.

    The learner runs these in chunked form, the sampler a row at a time; the two are equal in exact arithmetic but add
    in another order. On a CPU they compute in fp64 and round to fp32 once, at the end: both then arrive at the same
    fp32 number nearly always, and the log-probabilities agree (DESIGN §4.1). What it costs is measured by
    benchmarks/core_precision.py. On a GPU, where fp64 is slow, they compute in fp32.
    """
    if device.type == "cpu":
        return torch.float64
    return torch.promote_types(dtype, torch.float32)
