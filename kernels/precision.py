"""In which precision the token mixers compute."""

import torch


def core_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the recurrence, its state and the attention product, for inputs of `dtype`.

    The learner runs these in chunked form, the sampler a row at a time; the two are equal in exact arithmetic but add
    in another order. On a CPU they compute in fp64 and round to fp32 once, at the end: both then arrive at the same
    fp32 number nearly always, and the log-probabilities agree (DESIGN §4.1). It costs about a quarter of a training
    step (benchmarks/core_precision.py). On a GPU, where fp64 is slow, they compute in fp32.
    """
    if device.type == "cpu":
        return torch.float64
    return torch.promote_types(dtype, torch.float32)
