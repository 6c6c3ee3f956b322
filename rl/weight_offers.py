"""The versions of the weights that the learner holds for samplers to fetch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.model.weight_ipc import SharedWeights, Sharer
from deltarl.model.weight_meeting import Sender
from deltarl.model.weight_notice import Notice
from deltarl.model.weights import WeightUpdate


@dataclass(frozen=True)
class Held:
    tensors: Mapping[str, Tensor]
    made: torch.cuda.Event | None  # after it, on a GPU, the tensors are what they should be


class WeightOffers:
    """Holds the newest version that all samplers have, for those that start later, and those that none has yet."""

    def __init__(self) -> None:
        self._versions: dict[int, Held] = {}
        self._sender: Sender | None = None
        self._sharer = Sharer()

    def listen(self, address: str) -> int:
        """Lets samplers meet at this address; returns the port."""
        if self._sender is None:
            self._sender = Sender(self.held, address)
        return self._sender.port

    def offer(self, version: int, tensors: Mapping[str, Tensor], oldest: int) -> Notice:
        """
        Args:
            tensors: on a GPU or the host, which stay what they are while samplers fetch them.
            oldest: version that is still needed.
        """
        tensors = {name: x.detach() for name, x in tensors.items()}
        for old in [v for v in self._versions if v < oldest]:
            del self._versions[old]
        made = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        self._versions[version] = Held(tensors, made)
        return Notice.of(version, tensors)

    def share(self, notice: Notice) -> SharedWeights:
        """The version of this notice by handles."""
        return self._sharer.share(notice, self._versions[notice.version].tensors)

    def update(self, version: int) -> WeightUpdate:
        """A version to be taken through the object store."""
        return WeightUpdate.of_state(self._versions[version].tensors, version)

    def held(self, version: int) -> tuple[Mapping[str, Tensor], torch.cuda.Event | None]:
        """
        Raises:
            KeyError: it was given up.
        """
        found = self._versions[version]
        return found.tensors, found.made
