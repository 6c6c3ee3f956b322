"""Which experts the tokens of a forward pass go to: noted where a sampler runs, given where a learner does."""

import torch
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.model.config import mlp_kinds

UNKNOWN = -1  # in place of an expert that is given: the router decides


class Routing:
    """The experts of one forward pass over T tokens. Layers are those with experts, counted from 0."""

    def __init__(self, given: Tensor | None = None):
        """
        Args:
            given: `[T, layers, k]` integers, the experts to take whatever the routers say; `UNKNOWN` for all experts of
                a token that its routers decide.
        """
        self._given = given
        self._taken: dict[int, Tensor] = {}
        self._otherwise: dict[int, Tensor] = {}

    def take(self, layer: int, own: Tensor) -> Tensor:
        """The experts `[T, k]` that a layer's tokens go to, where its router would choose `own` `[T, k]`."""
        taken = own
        if self._given is not None:
            given = self._given[:, layer].long()
            known = given != UNKNOWN
            taken = given.where(known, own)
            self._otherwise[layer] = (known & (given.unsqueeze(-1) != own.unsqueeze(-2)).all(-1)).sum()
        self._taken[layer] = taken
        return taken

    @property
    def taken(self) -> Tensor:
        """`[T, layers, k]`, after the pass."""
        return torch.stack([taken for _, taken in sorted(self._taken.items())], 1)

    @property
    def otherwise(self) -> Tensor:
        """How many of the experts given are not among those that the routers would have chosen; after the pass."""
        return torch.stack(list(self._otherwise.values())).sum()


def routing_shape(config: KimiLinearConfig) -> tuple[int, int]:
    """Layers with experts, and experts per token in each; `(0, 0)` of a model without."""
    layers = mlp_kinds(config).count("sparse")
    return (layers, config.num_experts_per_tok or 0) if layers else (0, 0)


def routing_dtype(config: KimiLinearConfig) -> torch.dtype:
    """The smallest that tells the experts apart."""
    return torch.uint8 if config.num_local_experts <= 256 else torch.int16
