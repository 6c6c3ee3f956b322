"""Loss and gradient of batches of one shape."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltarl.kernels.precision import without_sampler
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.rl.synthetic.tasks import Batch

NO_TARGET = -100
WARM_UP = 3  # passes before a graph is recorded, as PyTorch asks for


class TrainingStep:
    """Leaves the gradient of a batch's loss, clipped, in the parameters.

    On a GPU the passes are recorded once as a CUDA graph: for models of this size it takes longer to launch kernels
    than to run them.
    """

    def __init__(self, policy: HybridForCausalLM, like: Batch, max_grad_norm: float):
        """
        Args:
            like: a batch of the shape of all of them; none may have more than half of its tokens wanted.
        """
        self._policy, self._max_grad_norm = policy, max_grad_norm
        count, length = like.ids.shape
        self._packing = Packing.from_lengths([length] * count, policy.device)
        room = -(-like.ids.size // 2)
        self._ids, self._predictor, self._target = (
            torch.zeros(n, dtype=torch.int64, device=policy.device) for n in (like.ids.size, room, room)
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        if policy.device.type == "cuda":
            self._fill(like)
            self._record()

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss of the wanted tokens, a scalar on the device."""
        self._fill(batch)
        if self._graph is None:
            return self._learn()
        self._graph.replay()
        return self._loss.clone()

    def _fill(self, batch: Batch) -> None:
        flat = batch.ids.reshape(-1)
        (wanted,) = batch.wanted.reshape(-1).nonzero()
        padding = len(self._target) - len(wanted)
        # Not one position again and again: the gradients of equal ones are added up one after the other.
        (others,) = (~np.roll(batch.wanted.reshape(-1), -1)).nonzero()
        for kept, values in (
            (self._ids, flat),
            (self._predictor, np.concatenate([wanted - 1, others[:padding]])),
            (self._target, np.pad(flat[wanted], (0, padding), constant_values=NO_TARGET)),
        ):
            new = torch.from_numpy(values)
            kept.copy_(new.pin_memory() if kept.is_cuda else new, non_blocking=True)

    def _learn(self) -> Tensor:
        for p in self._policy.parameters():
            p.grad = None
        with without_sampler():
            out = self._policy(self._ids.unsqueeze(0), cu_seqlens=self._packing, logits_to_keep=self._predictor)
            loss = F.cross_entropy(out.logits.squeeze(0).float(), self._target, ignore_index=NO_TARGET)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._max_grad_norm)
        return loss.detach()

    def _record(self) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._learn()
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._learn()
