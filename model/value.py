"""Values beside tokens: a trunk with one number at each position, on its own or next to a policy."""

from typing import Any

import torch
from torch import Tensor, nn

from deltarl.model.hybrid import HybridForCausalLM, HybridModel, HybridOutput


class ValueHead(nn.Module):
    """`[..., D]` hidden states to `[...]` values in fp32. It starts at 0, so that a new critic says nothing."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # The values of a bf16 trunk would be steps of 1/256 apart.
        return nn.functional.linear(hidden.float(), self.out.weight.float(), self.out.bias.float()).squeeze(-1)


class HybridForValues(nn.Module):
    """A critic with a trunk of its own."""

    def __init__(self, trunk: HybridModel):
        super().__init__()
        self.trunk, self.head = trunk, ValueHead(trunk.embed_tokens.embedding_dim)
        self.head.to(trunk.embed_tokens.weight.device)

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor, positions: Tensor) -> Tensor:
        """Values `[1, n]` fp32 at `positions` `[n]` of packed ids `[1, T]`."""
        hidden = self.trunk(input_ids, cu_seqlens=cu_seqlens).last_hidden_state
        return self.head(hidden[:, positions])


class PolicyWithValues(nn.Module):
    """A policy and a value head on its trunk, one forward pass for both."""

    def __init__(self, policy: HybridForCausalLM):
        super().__init__()
        self.policy, self.head = policy, ValueHead(policy.config.hidden_size)
        self.head.to(policy.device)

    def forward(self, **inputs: Any) -> HybridOutput:
        """What the policy returns for `inputs`, and `state_values` at the same positions."""
        out = self.policy(**inputs, keep_hidden=True)
        assert isinstance(out.hidden_states, torch.Tensor)
        out.state_values = self.head(out.hidden_states)
        return out
