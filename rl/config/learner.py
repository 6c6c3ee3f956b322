"""Who learns, and with which optimizer; the loss is in `deltarl.rl.objectives.config`."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.config.lora import LoRAConfig
from deltarl.rl.objectives.config import ObjectiveConfig

Sharding = Literal["none", "fsdp", "fsdp_offload"]


class LearnerConfig(ObjectiveConfig):
    critic: CriticConfig = CriticConfig()
    lora: LoRAConfig | None = None
    """Low-rank adapters learn instead of the policy's weights (rl/config/lora.py); needs the extra deltarl[lora]. The
    reference model is then the policy without them, and takes no memory."""
    num_ranks: PositiveInt = 1
    """Data-parallel learner processes. On a CPU, one a core with one thread each: a second thread in one process
    stalls whenever anything else wants its core."""
    sharding: Sharding = "none"
    """fsdp: each rank holds its part of weights, gradients and optimizer state (FSDP2), of the reference model and the
    critic too; fsdp_offload: in the host's memory, where the optimizer works too; none: each holds all of them. The
    numbers are the same."""
    num_threads: PositiveInt = 1
    num_cpus: PositiveFloat = 0.4
    num_gpus: float = Field(default=0.0, ge=0, le=1)
    """GPU of a rank, or its share of one; 0 learns on the CPU. Several ranks need one each: more than
    0.5, and what is left of it can be a worker's."""
    batch_invariant: bool = False
    """On GPUs, compute in kernels that give a token the same bits whatever it is batched with, in learner and samplers:
    the log-probs of both are then equal also in bf16. Costs time (benchmarks/README.md)."""
    router_replay: bool = False
    """Of a mixture of experts that our engine samples: the policy's tokens go to the experts that they went to when
    they were sampled, weighted by the learner's routers (docs/SCALING.md)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: of the policy's hidden matrices (the paper's choice), and AdamW for all else; a critic has AdamW. Both take
    the learning rate and the weight decay below: Muon's update is scaled to what AdamW's usually is."""
    learning_rate: PositiveFloat = 5e-4
    warmup_steps: NonNegativeInt = 5
    """Updates of linear warm-up, after which the rate stays constant or decays."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to A_log, dt_bias, norms and other vectors."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: PositiveFloat = 1.0
    max_skipped_steps: PositiveInt = 3
    """Optimizer steps are left out where loss or gradient are not finite; so many in a row stop the run."""
    max_restarts: NonNegativeInt = 3
    """Times in a row that a run goes on by itself from its last checkpoint after a rank died, without making a new
    one in between; then it stops. 0 stops at once."""
    max_tokens_per_micro_batch: PositiveInt = 8192
    """Tokens of a forward and backward pass; changes memory and speed, not the gradient."""
    activation_checkpointing: bool = False
    """Keep the input of each layer alone for the backward pass, and compute the layer again there: less memory, more
    time, the same numbers to the bit."""
    num_minibatches: PositiveInt = 1
    """Optimizer steps per sampled batch; the batch is cut into as many parts."""
    ptx_weight: NonNegativeFloat = 0.0
    """Weight of a supervised loss on worked solutions of the training problems, mixed into every step (PTX)."""
    ptx_batch_size: PositiveInt = 16
    """Worked solutions per optimizer step, if ptx_weight is above 0."""

    @model_validator(mode="after")
    def _updates_can_be_fewer(self) -> "LearnerConfig":
        if self.min_entropy and self.num_minibatches == 1:
            raise ValueError(
                f"learner.min_entropy = {self.min_entropy} makes fewer optimizer steps while entropy is low, and "
                "learner.num_minibatches = 1 is the fewest; raise num_minibatches, or leave min_entropy out"
            )
        return self

    @model_validator(mode="after")
    def _shards_have_ranks(self) -> "LearnerConfig":
        if self.sharding == "fsdp_offload" and self.optimizer == "muon":
            raise ValueError(
                "learner.sharding = 'fsdp_offload' has the host's processor do the optimizer's work, and Muon's are "
                "matrix products: use optimizer=adamw, or sharding=fsdp"
            )
        if self.sharding != "none" and self.num_ranks == 1:
            raise ValueError(
                f"learner.sharding = {self.sharding!r} cuts the model up among ranks, and learner.num_ranks = 1 is one"
                ": raise num_ranks, or leave sharding out"
            )
        return self

    @model_validator(mode="after")
    def _adapters_alone_learn(self) -> "LearnerConfig":
        if self.lora is None:
            return self
        for key, value, why in (
            ("sharding", self.sharding != "none", "its matrices are merged whole in every pass; use sharding=none"),
            ("activation_checkpointing", self.activation_checkpointing, "merged matrices are those of the pass alone"),
            ("optimizer", self.optimizer == "muon", "Muon is for whole matrices, not for factors; use optimizer=adamw"),
            ("reference_interval", bool(self.reference_interval), "the reference model is the policy without adapters"),
        ):
            if value:
                raise ValueError(f"learner.lora does not go with learner.{key} = {getattr(self, key)!r}: {why}")
        if self.baseline == "critic" and self.critic.trunk == "shared":
            raise ValueError(
                "learner.lora does not go with learner.critic.trunk = 'shared', whose trunk would learn values through "
                "adapters alone: use trunk=own"
            )
        return self

    @model_validator(mode="after")
    def _critic_is_used(self) -> "LearnerConfig":
        if self.baseline != "critic" and self.critic != CriticConfig():
            raise ValueError(
                f"learner.critic is set, but learner.baseline = {self.baseline!r} asks none; use algorithm=ppo, or "
                "leave learner.critic out"
            )
        return self
