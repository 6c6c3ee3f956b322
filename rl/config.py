"""The run's configuration: typed, documented key by key, refused before anything starts if it makes no sense.

The string under each field is its documentation; `configs/*.yaml` set these keys, `key.sub=value` on the command line
overrides them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deltarl.model.config import LinearAttention
from deltarl.rl.alerts import AlertConfig
from deltarl.rl.critic_config import CriticConfig
from deltarl.rl.hardware import HardwareConfig
from deltarl.rl.lora_config import LoRAConfig
from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.presets import Algorithm, with_preset
from deltarl.rl.sampling_config import SamplingConfig
from deltarl.rl.section import Section
from deltarl.rl.transport import WeightTransport, choose_transport

Sharding = Literal["none", "fsdp", "fsdp_offload"]


class ModelConfig(Section):
    path: str | None = None
    """Checkpoint folder with its tokenizer: kimi_linear, or any causal language model of HuggingFace with
    rollout.backend transformers or vllm. Without it, a random model of the size below is made."""
    tokenizer_extra_tokens: list[str] = Field(default=["\\boxed{"])
    """Strings that are one token each in the byte-level tokenizer of a model made here."""
    hidden_size: PositiveInt = 96
    num_hidden_layers: PositiveInt = 4
    full_attention_every: PositiveInt = 4
    """Every n-th layer is full attention (MLA), the others KDA: 4 is the paper's 3:1, 1 the all-attention baseline."""
    num_attention_heads: PositiveInt = 3
    linear_num_heads: PositiveInt = 3
    linear_head_dim: PositiveInt = 32
    intermediate_size: PositiveInt = 192
    kv_lora_rank: PositiveInt = 32
    qk_nope_head_dim: PositiveInt = 24
    qk_rope_head_dim: PositiveInt = 8
    v_head_dim: PositiveInt = 32
    rope: bool = False
    """Rotate the rope part of the attention keys; the paper's model does not (NoPE)."""
    linear_attention: LinearAttention = "kda"
    """The layers that are not full attention: kda forgets by key channel, gdn (Gated DeltaNet) by head."""
    gate_lower_bound: float | None = Field(default=None, lt=0)
    """Bounded forget gate, e.g. -5; null is the softplus gate of the released model."""
    num_experts: NonNegativeInt = 0
    """Mixture of experts in every layer but the first; 0 is dense."""
    num_experts_per_token: PositiveInt = 2
    moe_intermediate_size: PositiveInt = 64
    initializer_range: PositiveFloat = 0.02
    max_position_embeddings: PositiveInt = 512
    """Longest prompt and answer together, in tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights of a model made here, which it computes in; a checkpoint keeps its own. Learning is in fp32."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `deltarl.model.config.hybrid_config` that are given here."""
        return self.model_dump(exclude={"path", "tokenizer_extra_tokens", "dtype"})


class SourceConfig(Section):
    """Where problems come from: `problems` makes them, `path` reads them; exactly one of the two."""

    problems: list[dict[str, Any]] | None = None
    """Generated problems, a list of {family, level, weight}, of some families also {length} (docs/TASKS.md)."""
    num_problems: PositiveInt = 1000
    """How many to generate."""
    path: str | None = None
    """A .jsonl, .jsonl.gz or .parquet file, or the name of a HuggingFace dataset."""
    subset: str | None = None
    """Configuration of a HuggingFace dataset, e.g. main."""
    split: str | None = None
    """Split of a HuggingFace dataset."""
    problem_column: str = "problem"
    answer_column: str = "answer"
    solution_column: str | None = None
    answer_pattern: str | None = None
    """Regular expression whose one group is the answer within the answer column."""
    limit: PositiveInt | None = None
    """Use only the first rows."""
    weight: PositiveFloat = 1.0
    """Of training problems: share of the draws from this source, beside the weights of data.more_train."""

    @model_validator(mode="after")
    def _one_source(self) -> "SourceConfig":
        if (self.problems is None) == (self.path is None):
            raise ValueError("set exactly one of `problems` (generated) and `path` (a file or a dataset)")
        return self


class DataConfig(Section):
    train: SourceConfig
    test: SourceConfig
    """Held-out problems. Generated train and test problems never overlap, whatever the seeds."""
    more_tests: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], SourceConfig] = Field(default={})
    """Further held-out sets by name, e.g. {amc: {path: amc.jsonl}}; their metrics are eval/{name}/..."""
    more_train: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], SourceConfig] = Field(default={})
    """Further sources of training problems by name, mixed in by their weights."""
    sampling: SamplingConfig = SamplingConfig()
    prompt_template: str | None = None
    """Jinja template with {{ problem }}; null is the tokenizer's chat template."""
    system_prompt: str | None = None
    max_prompt_tokens: PositiveInt = 256
    on_long_prompt: Literal["error", "drop"] = "error"


class SFTConfig(Section):
    """The supervised warm start, on the solutions of the training problems; left out, RL starts from the model."""

    steps: PositiveInt = 100
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt = 20
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    direct_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the demonstrations that give the boxed answer alone, without the steps that lead to it."""
    checkpoint_interval: int = Field(default=500, gt=0, multiple_of=10)
    """Steps between two checkpoints of the warm start, which a run that was cut short goes on from; a multiple of 10,
    the steps between two rows of its metrics. One has some 14 bytes a parameter; there are up to three at a time, until
    the warm start is done."""


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


class RewardFunctionConfig(Section):
    name: str
    """Name in the metrics: reward/{name}/mean."""
    function: str = "math"
    """`math`, the built-in verifier; or a plug-in: path/to/file.py:function, package.module:function, the name of a
    ready-made one (docs/REWARDS.md), or an entry point of an installed package in the group deltarl.rewards."""
    weight: float = 1.0
    args: dict[str, Any] = Field(default={})
    """Parameters of the plug-in, by name."""


class RewardConfig(Section):
    functions: list[RewardFunctionConfig] = Field(default=[RewardFunctionConfig(name="math")], min_length=1)
    marker: Literal["boxed", "####", "answer_tag", "the_answer_is", "any_marker", "anywhere"] = "boxed"
    """Where the answer stands in a completion."""
    timeout: PositiveFloat = 1.0
    """Processor seconds one verdict may take."""
    overlong_fraction: float = Field(default=0.0, ge=0, le=1)
    """Punish answers in the last part of rollout.max_tokens, of this share: the reward falls linearly by 1 (DAPO's soft
    overlong punishment, a reward function named overlong); 0 does not."""
    num_workers: PositiveInt = 1
    """Ray actors that score."""
    num_cpus: PositiveFloat = 0.25
    stuck_after: PositiveFloat = 3600.0
    """As rollout.stuck_after, of a worker that scores."""

    @model_validator(mode="after")
    def _distinct_names(self) -> "RewardConfig":
        names = [f.name for f in self.functions] + (["overlong"] if self.overlong_fraction else [])
        if len(set(names)) < len(names):
            raise ValueError(f"reward functions need distinct names, got {names}")
        return self


class LearnerConfig(ObjectiveConfig):
    critic: CriticConfig = CriticConfig()
    lora: LoRAConfig | None = None
    """Low-rank adapters learn instead of the policy's weights (rl/lora_config.py); needs the extra deltarl[lora]. The
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


class EvalConfig(Section):
    interval: PositiveInt = 20
    """Steps between evaluations; there is one before the first step and one after the last."""
    num_problems: PositiveInt = 128
    """Of data.test; at most so many of each of data.more_tests."""
    num_samples: PositiveInt = 4
    """k: samples per problem, for pass@1 (their mean, also known as avg@k), pass@k (any right), maj@k (most agree)."""
    temperature: NonNegativeFloat = 1.0


class CheckpointConfig(Section):
    interval: PositiveInt = 20
    """Steps between checkpoints; there is always one after the last step."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_best: NonNegativeInt = 1
    """Checkpoints of the highest eval/pass@1 kept besides. One is also made whenever an evaluation is better than that
    of all before; 0 does neither."""


class LoggingConfig(Section):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when logged in, else offline (files in the run folder)."""
    wandb_project: str = "deltarl"
    tensorboard: bool = False
    """Also write TensorBoard event files, in the run's folder tensorboard; needs the extra deltarl[tensorboard]."""
    samples_per_step: NonNegativeInt = 8
    """Sampled answers kept in samples.jsonl each step, for the report."""
    prometheus_port: int | None = Field(default=None, ge=1, le=65535)
    """Serve the newest metrics on this port of the driver's machine, at /metrics, as gauges deltarl_* with the label
    run; null serves nothing."""
    prometheus_host: str = "127.0.0.1"
    """Address it listens at: the default is for this machine alone, 0.0.0.0 is open to all that reach it."""


class RunConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Folder of the run within output_dir."""
    output_dir: str = "runs"
    seed: NonNegativeInt = 0
    steps: PositiveInt
    """Sample-score-update steps."""
    in_process: bool = False
    """Run all of it in the one process that was started, without Ray: for a debugger. The curve is the same."""
    placement: Literal["colocated", "disaggregated"] = "colocated"
    """colocated: a learner rank and its rollout workers share a GPU, by the fractions of num_gpus, and everything is on
    as few nodes as possible; disaggregated: GPUs are the learner's or the rollout workers' as a whole, on as many nodes
    as possible (docs/CLUSTER.md). Without GPUs it says only how far workers are spread over nodes."""
    hardware: HardwareConfig | None = None
    """For --dry-run alone: the nodes and devices to plan for, where they are not this machine (docs/CLUSTER.md)."""
    heartbeat: PositiveFloat = 20.0
    """Seconds that the process of a worker or learner may stand still (stopped by a signal, which is looked up on its
    node) before it is killed and replaced. One that is busy is left alone, however long it takes."""
    algorithm: Algorithm = "grpo"
    """Sets the switches below that make this algorithm (rl/presets.py), where the recipe does not set them itself."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    sft: SFTConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    alerts: AlertConfig = AlertConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_algorithm(cls, data: Any) -> Any:
        return with_preset(data) if isinstance(data, dict) else data

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        rollout, learner = self.rollout, self.learner
        if rollout.num_generations < 2 and learner.baseline in ("group", "leave_one_out"):
            raise ValueError(
                f"rollout.num_generations = {rollout.num_generations}: algorithm = {self.algorithm!r} with "
                f"learner.baseline = {learner.baseline!r} compares the samples of a group with each other and needs at "
                "least 2; one sample a problem is enough for algorithm=ppo and algorithm=reinforce_pp"
            )
        if learner.baseline == "critic" and learner.critic.warmup_updates >= self.steps:
            raise ValueError(
                f"learner.critic.warmup_updates = {learner.critic.warmup_updates} of steps = {self.steps} leave the "
                "policy none to learn in; lower warmup_updates, or raise steps"
            )
        if rollout.dynamic_sampling and learner.baseline in ("none", "critic"):
            raise ValueError(
                "rollout.dynamic_sampling drops problems whose samples score alike, but with learner.baseline = "
                f"{learner.baseline!r} they teach too; use baseline=group, or dynamic_sampling=false"
            )
        if rollout.max_refills and not rollout.dynamic_sampling:
            raise ValueError(
                f"rollout.max_refills = {rollout.max_refills} refills what dynamic sampling drops; set "
                "rollout.dynamic_sampling=true, or leave max_refills out"
            )
        if self.in_process and learner.num_ranks > 1:
            raise ValueError(
                f"in_process = true is one process, and learner.num_ranks = {learner.num_ranks} are several: set "
                "learner.num_ranks=1"
            )
        if rollout.in_flight != "none":
            self._weights_reach_samplers_at_work()
        samples = rollout.prompts_per_step * rollout.num_generations
        parts = learner.num_ranks * learner.num_minibatches
        if learner.num_ranks > 1 and 0 < learner.num_gpus <= 0.5:
            raise ValueError(
                f"learner.num_gpus = {learner.num_gpus}: each of learner.num_ranks = {learner.num_ranks} ranks needs a "
                "GPU of its own; reserve more than half of one, or set learner.num_ranks=1"
            )
        beside = -(-rollout.num_workers // learner.num_ranks)
        shared = learner.num_gpus + beside * rollout.num_gpus
        if self.placement == "colocated" and learner.num_gpus and rollout.num_gpus and shared > 1.0 + 1e-6:
            raise ValueError(
                f"placement = 'colocated' has a learner rank and {beside} of rollout.num_workers = "
                f"{rollout.num_workers} share a GPU, but learner.num_gpus = {learner.num_gpus:g} and {beside} times "
                f"rollout.num_gpus = {rollout.num_gpus:g} are {shared:g}: lower one of them or rollout.num_workers, or "
                "set placement=disaggregated"
            )
        if learner.batch_invariant and not (learner.num_gpus and rollout.num_gpus and rollout.backend == "native"):
            raise ValueError(
                "learner.batch_invariant is for kernels of learner and samplers on GPUs; leave it out, or set "
                "learner.num_gpus, rollout.num_gpus and rollout.backend=native"
            )
        if learner.router_replay and rollout.backend != "native":
            raise ValueError(
                f"learner.router_replay needs the experts that sampled, and rollout.backend = {rollout.backend!r} does "
                "not name them; use rollout.backend=native, or router_replay=false"
            )
        choose_transport(self)
        if samples < parts:
            raise ValueError(
                f"{samples} samples a step cannot be shared among learner.num_ranks = {learner.num_ranks} times "
                f"learner.num_minibatches = {learner.num_minibatches}"
            )
        if self.sft is not None and self.sft.batch_size % learner.num_ranks:
            raise ValueError(
                f"sft.batch_size = {self.sft.batch_size} cannot be shared evenly among learner.num_ranks = "
                f"{learner.num_ranks}"
            )
        if self.model.num_experts and self.model.num_experts_per_token > self.model.num_experts:
            raise ValueError(
                f"model.num_experts_per_token = {self.model.num_experts_per_token} exceeds model.num_experts = "
                f"{self.model.num_experts}"
            )
        if (
            self.sft is not None
            and self.reward.marker not in ("boxed", "any_marker", "anywhere")
            and (self.data.train.problems or self.sft.direct_fraction)
        ):
            raise ValueError(
                f"the warm start would teach \\boxed{{}} while reward.marker = {self.reward.marker!r} looks elsewhere; "
                "leave sft out, use reward.marker=boxed, or bring solutions of your own in a file"
            )
        room = self.model.max_position_embeddings
        if self.model.path is None and self.data.max_prompt_tokens + rollout.max_tokens > room:
            raise ValueError(
                f"data.max_prompt_tokens + rollout.max_tokens = {self.data.max_prompt_tokens + rollout.max_tokens} "
                f"exceeds model.max_position_embeddings = {room}"
            )
        for section, source in (("train", self.data.train), ("test", self.data.test)):
            count = rollout.prompts_per_step if section == "train" else self.eval.num_problems
            if source.problems is not None and source.num_problems < count:
                raise ValueError(f"data.{section}.num_problems = {source.num_problems}, but {count} are used at once")
        return self

    def _weights_reach_samplers_at_work(self) -> None:
        rollout = self.rollout
        for key, value, can, why in (
            (
                "rollout.max_staleness",
                rollout.max_staleness,
                rollout.max_staleness > 0,
                "no sampler is at work when new weights come; set max_staleness to 1 or more",
            ),
            (
                "rollout.backend",
                rollout.backend,
                rollout.backend == "native",
                "it takes new weights between batches alone; use backend=native",
            ),
            (
                "in_process",
                self.in_process,
                not self.in_process,
                "one process samples and learns in turns; set in_process=false",
            ),
        ):
            if not can:
                raise ValueError(
                    f"rollout.in_flight = {rollout.in_flight!r} does not go with {key} = {value!r}: {why}, or "
                    "in_flight=none"
                )
