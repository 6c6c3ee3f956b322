"""Batch-invariant mode: what a token gets does not depend on what it is computed with, to the bit, on a GPU.

Sampler and learner run the same functions on other shapes: a row of a decoding batch here, thousands of packed tokens
there. KDA's kernels, norms and token log-probs give a row the same bits in both; PyTorch's matrix products do not, and
attention is computed in another form (expanded keys there, absorbed queries here). In this mode all products come from
`deltarl.kernels.gpu.matmul`, and the attention layers of whole sequences from the decoder's kernel, token by token. The
log-probs that a learner computes then are those of the sampler, in bf16 too. What it costs: benchmarks/README.md.
"""

from torch import Tensor
from torch.library import Library

_products: Library | None = None


def set_batch_invariant(on: bool) -> None:
    """Switches the mode for this process: sampler and learner both have to be in it, and stay in it.

    In the mode products of fp64 on a GPU raise a ValueError.
    """
    global _products
    if on and _products is None:
        from deltarl.kernels.gpu.matmul import matmul  # Triton is there with a GPU only

        _products = Library("aten", "IMPL")
        _products.impl("mm", matmul, "CUDA")
        _products.impl("bmm", matmul, "CUDA")
        _products.impl("addmm", _addmm, "CUDA")
    elif not on and _products is not None:
        _products._destroy()
        _products = None


def is_batch_invariant() -> bool:
    return _products is not None


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    from deltarl.kernels.gpu.matmul import matmul

    if beta == alpha == 1 and bias.ndim == 1 and bias.shape[0] == b.shape[1]:
        return matmul(a, b, bias.contiguous())
    product = matmul(a, b) * alpha
    return product if beta == 0 else bias * beta + product
