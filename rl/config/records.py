"""What a run writes down: evaluations, checkpoints, logs."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from deltarl.rl.section import Section


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
