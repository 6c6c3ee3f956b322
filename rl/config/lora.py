"""The switches of LoRA. Free of torch, as rl/objectives/config.py is."""

from pydantic import PositiveInt

from deltarl.rl.section import Section


class LoRAConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) through peft: the policy itself stays as it is, and only they learn.

    There is no dropout: the sampler has none, so the learner must have none either.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The adapter's product is scaled by alpha / rank."""
    targets: list[str] | None = None
    """Last parts of the names of the adapted projections. null: of our hybrid, every projection of the KDA and the
    attention layers; of another model, every linear layer but the output."""
