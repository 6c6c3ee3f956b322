"""Weights that a sampler fetches from the learner itself, as backends load them: in the place of a `WeightUpdate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltarl.model.weight_group import Call
from deltarl.model.weight_ipc import SharedWeights, open_shared
from deltarl.model.weight_meeting import Receiver
from deltarl.model.weight_notice import Notice

Offer = Notice | Sequence[SharedWeights]
"""What to take part in a broadcast for; or the weights of the learner's ranks by handle, of which those on this
sampler's GPU are taken."""


@dataclass(frozen=True)
class Fetched:
    """Goes from the learner straight into the model, which does nothing else meanwhile."""

    offer: Offer
    call: Call | None
    receiver: Receiver

    @property
    def notice(self) -> Notice:
        return self.offer if isinstance(self.offer, Notice) else self.offer[0].notice

    @property
    def version(self) -> int:
        return self.notice.version

    def load_into(self, model: nn.Module) -> None:
        """Raises TransferError or WeightMismatchError; the model's weights are then unknown."""
        state = model.state_dict()
        if isinstance(self.offer, Notice):
            assert self.call is not None
            self.receiver.receive(self.offer, self.call, state)
        else:
            Staged(self.notice, open_shared(self.offer, state)).load_into(model)


@dataclass(frozen=True)
class Staged:
    """Is in memory that the model's device reads."""

    notice: Notice
    tensors: Mapping[str, Tensor]

    @property
    def version(self) -> int:
        return self.notice.version

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Raises WeightMismatchError if what is then in the model is not what was published."""
        state = model.state_dict()
        for name, x in state.items():
            x.copy_(self.tensors[name])
        self.notice.check_arrived(state)


class Staging:
    """Fetches weights while the model is in use, on a stream of its own: a broadcast into a second set of the model's
    tensors, which is kept, and by handle nothing, as the learner's own memory can be read."""

    def __init__(self, model: nn.Module):
        self._like = model.state_dict()
        self._memory: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream() if any(x.is_cuda for x in self._like.values()) else None

    @torch.no_grad()
    def fetch(self, fetched: Fetched) -> Staged:
        """To be called when what it returned before is not needed any more.

        Raises:
            TransferError: they did not arrive.
            WeightMismatchError: they do not fit, or what arrived is not what was published.
        """
        with torch.cuda.stream(self._stream):
            if isinstance(fetched.offer, Notice):
                assert fetched.call is not None
                if not self._memory:
                    self._memory = {name: torch.empty_like(x).contiguous() for name, x in self._like.items()}
                fetched.receiver.receive(fetched.offer, fetched.call, self._memory)
                return Staged(fetched.notice, self._memory)
            tensors = open_shared(fetched.offer, self._like)
            fetched.notice.check_arrived(tensors)
            return Staged(fetched.notice, tensors)
