"""Any causal language model of transformers behind the interface that the learner calls."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from deltarl.model.hybrid import HybridOutput
from deltarl.model.packing import PAD_MULTIPLE


class HFPolicy(nn.Module):
    """Log-probabilities of packed sequences from a model that takes padded batches.

    Its parameters go by the model's own names in `state_dict`, which are those a sampler of transformers knows.
    Stays in eval mode: the sampler has no dropout, so the learner must have none either.
    Computes and learns in fp32, whatever the checkpoint's dtype: in bf16 most updates of a usual learning rate are
    rounded away.

    Attributes:
        stored_dtypes: by name in `state_dict`, what a sampler of the same checkpoint has.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.stored_dtypes = {name: x.dtype for name, x in model.state_dict().items()}
        self.model = model.float()
        self.config = model.config
        self.train()

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        logits_to_keep: Tensor,
        logprobs_of: Tensor,
        temperature: float = 1.0,
    ) -> HybridOutput:
        """Log-probability and entropy `[1, n]` of given tokens, in fp32.

        The logits of all positions are in memory at once, `[N, longest, vocab]`: models differ in what comes after the
        last hidden state (scales, soft caps), and only their own forward pass knows.

        Args:
            input_ids: `[1, T]` packed.
            cu_seqlens: `[N+1]` bounds.
            logits_to_keep: `[n]` positions along T whose logits predict the tokens.
            logprobs_of: `[1, n]` the tokens.
            temperature: that the log-probabilities are computed at.
        """
        lengths = cu_seqlens.diff()
        longest = -(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE
        column = torch.arange(longest, device=input_ids.device)
        # On the right, where a causal mask keeps padding out of sight of every token.
        mask = column < lengths[:, None]
        padded = input_ids.new_zeros(len(lengths), longest)
        padded[mask] = input_ids[0]
        logits = self.model(input_ids=padded, attention_mask=mask.long(), use_cache=False).logits
        kept = logits[mask][logits_to_keep].float() / temperature
        every = kept.log_softmax(-1)
        logprobs = every.gather(-1, logprobs_of[0].unsqueeze(-1)).squeeze(-1)
        entropy = -(every.exp() * every).sum(-1)
        return HybridOutput(logprobs=logprobs.unsqueeze(0), entropy=entropy.unsqueeze(0))

    def train(self, mode: bool = True) -> "HFPolicy":
        return super().train(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(*args, **kwargs)

    def save_pretrained(self, path: str | PathLike[str], state_dict: Mapping[str, Tensor] | None = None) -> None:
        """`state_dict`: the whole weights, where the model holds a shard of them or others."""
        self.model.save_pretrained(path, state_dict=None if state_dict is None else dict(state_dict))


def load_causal_lm(path: str | PathLike[str]) -> PreTrainedModel:
    """transformers' model of a checkpoint folder, in its stored dtype.

    Raises:
        OSError, ValueError: no such checkpoint, or not one of a causal language model.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    return model
