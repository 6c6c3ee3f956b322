"""Who samples, what, and how far ahead of the learner."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from deltarl.rl.section import Section
from deltarl.rl.transport import WeightTransport


class RolloutConfig(Section):
    backend: Literal["native", "transformers", "vllm"] = "native"
    """Who samples: our engine for the hybrid, or transformers or vLLM, for any causal language model."""
    num_workers: PositiveInt = 2
    """Ray actors that sample."""
    prompts_per_step: PositiveInt = 32
    """Problems per step."""
    num_generations: int = Field(default=16, ge=1)
    """Samples per problem: the group of GRPO."""
    dynamic_sampling: bool = False
    """Learn only from problems whose samples score differently (DAPO)."""
    max_refills: NonNegativeInt = 0
    """With dynamic_sampling, how many times more problems are sampled in place of those dropped, at most."""
    max_staleness: NonNegativeInt = 0
    """Versions by which the weights that sample may be behind those that learn, and batches sampled ahead while the
    learner works: 0 is synchronous, 1 one step ahead (docs/ASYNC.md)."""
    in_flight: Literal["none", "keep", "replay"] = "none"
    """What new weights mean for answers under way, where samplers are ahead of the learner: keep and replay go on with
    the new weights from the next token, from the states that older ones computed, or from those that the new ones
    compute of the tokens so far. Tokens are then fresher, and the curve depends on who is faster. none has new weights
    wait for the end of a batch; the same seed gives the same curve (docs/ASYNC.md)."""
    weight_transport: WeightTransport = "auto"
    """How new weights get from the learner to the workers (docs/FLEET.md): object_store, through the host's memory and
    Ray, for any run; collective, by a broadcast (NCCL between GPUs that no two of them share, else gloo); ipc, by
    handle on a GPU that they share; auto, whichever placement and GPUs are right for."""
    max_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: NonNegativeInt = 0
    max_num_seqs: PositiveInt = 256
    """Samples decoded at once by a worker."""
    num_threads: PositiveInt = 1
    num_cpus: PositiveFloat = 0.4
    """Ray CPUs a worker reserves."""
    num_gpus: float = Field(default=0.0, ge=0, le=1)
    """GPU of a worker, or its share of one; 0 samples on the CPU."""
    stuck_after: PositiveFloat = 3600.0
    """Seconds that a worker's share of a batch may take. After them it is killed, and another worker does the share."""
