"""All of a run: its sections, and whether they fit together."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.alerts import AlertConfig
from deltarl.rl.config.data import DataConfig
from deltarl.rl.config.learner import LearnerConfig
from deltarl.rl.config.model import ModelConfig
from deltarl.rl.config.records import CheckpointConfig, EvalConfig, LoggingConfig
from deltarl.rl.config.reward import RewardConfig
from deltarl.rl.config.rollout import RolloutConfig
from deltarl.rl.config.sft import SFTConfig
from deltarl.rl.hardware import HardwareConfig
from deltarl.rl.presets import Algorithm, with_preset
from deltarl.rl.section import Section
from deltarl.rl.transport import choose_transport


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
    def _samples_teach(self) -> "RunConfig":
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
        return self

    @model_validator(mode="after")
    def _work_is_shared_out(self) -> "RunConfig":
        rollout, learner = self.rollout, self.learner
        if self.in_process and learner.num_ranks > 1:
            raise ValueError(
                f"in_process = true is one process, and learner.num_ranks = {learner.num_ranks} are several: set "
                "learner.num_ranks=1"
            )
        samples = rollout.prompts_per_step * rollout.num_generations
        parts = learner.num_ranks * learner.num_minibatches
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
        return self

    @model_validator(mode="after")
    def _devices_suffice(self) -> "RunConfig":
        rollout, learner = self.rollout, self.learner
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
        return self

    @model_validator(mode="after")
    def _ways_are_open(self) -> "RunConfig":
        rollout, learner = self.rollout, self.learner
        if rollout.in_flight != "none":
            self._weights_reach_samplers_at_work()
        if learner.router_replay and rollout.backend != "native":
            raise ValueError(
                f"learner.router_replay needs the experts that sampled, and rollout.backend = {rollout.backend!r} does "
                "not name them; use rollout.backend=native, or router_replay=false"
            )
        choose_transport(self)
        return self

    @model_validator(mode="after")
    def _problems_fit(self) -> "RunConfig":
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
        longest, room = self.data.max_prompt_tokens + self.rollout.max_tokens, self.model.max_position_embeddings
        if self.model.path is None and longest > room:
            raise ValueError(
                f"data.max_prompt_tokens + rollout.max_tokens = {longest} exceeds model.max_position_embeddings = "
                f"{room}"
            )
        for section, source in (("train", self.data.train), ("test", self.data.test)):
            count = self.rollout.prompts_per_step if section == "train" else self.eval.num_problems
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
