"""A study's configuration: arms that differ in a few keys of one recipe, and how they are compared."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from deltarl.rl.cli import ConfigError, read_mapping
from deltarl.rl.section import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class SweepConfig(Section):
    """Hyperparameters tried alike for every arm; each arm then runs with what was best for it."""

    values: dict[str, list[Any]] = Field(min_length=1)
    """Keys of the recipe and the values to try; of several keys, every combination."""
    seeds: list[int] = Field(min_length=1)
    """Other seeds than those that are compared, so that no arm is judged by the luck it was chosen for."""
    steps: PositiveInt
    """RL steps of a trial. Its mark is the mean training reward of the last quarter: held-out problems stay unseen."""


class FinalConfig(Section):
    """The evaluation after the last step, the same problems for all arms of a seed."""

    num_problems: PositiveInt = 256
    num_samples: PositiveInt = 4


class DecodeConfig(Section):
    """Bytes and speed of decoding by context, on the trained models; a rate is of all sequences together."""

    contexts: list[PositiveInt] = Field(default=[256, 1024, 4096], min_length=1)
    num_sequences: PositiveInt = 16
    num_tokens: PositiveInt = 32
    """Decoded after each context."""


class StudyConfig(Section):
    name: Name
    output_dir: str = "runs"
    recipe: str
    """The recipe of every arm, relative to the study's file."""
    set: dict[str, Any] = Field(default={})
    """Keys of the recipe that are other for all arms."""
    arms: dict[Name, dict[str, Any]] = Field(min_length=2)
    """Each arm's keys of the recipe, e.g. {attention: {model.full_attention_every: 1}}."""
    baseline: Name
    """The arm that the others are compared with, and whose number of parameters they are given."""
    match_key: str | None = "model.intermediate_size"
    """The key that is fitted so that every arm has the baseline's number of parameters within 1 %; null fits none."""
    seeds: list[int] = Field(min_length=1)
    sweep: SweepConfig | None = None
    final: FinalConfig = FinalConfig()
    decode: DecodeConfig = DecodeConfig()
    num_parallel: PositiveInt = 2
    """Runs side by side; each is one process."""
    num_cpus: PositiveFloat = 1.0
    """What Ray reserves for a run."""
    num_gpus: float = Field(default=0.0, ge=0, le=1)
    """GPU of a run, or its share of one."""
    num_threads: PositiveInt = 1

    @model_validator(mode="after")
    def _fits_together(self) -> "StudyConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"baseline = {self.baseline!r} is none of the arms, which are {', '.join(self.arms)}")
        for key, seeds in (("seeds", self.seeds), ("sweep.seeds", self.sweep.seeds if self.sweep else [])):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{key} = {seeds} has a seed twice: the second run would be the first again")
        if self.sweep and (shared := set(self.seeds) & set(self.sweep.seeds)):
            raise ValueError(
                f"sweep.seeds and seeds share {sorted(shared)}: choose others for the sweep, or its luck is compared"
            )
        early = [
            key for key in (self.sweep.values if self.sweep else {}) if key.split(".")[0] in ("sft", "model", "data")
        ]
        if early:
            raise ValueError(
                f"sweep.values has {early[0]}, which makes another starting point, and trials share theirs: sweep keys "
                "of learner and rollout, and make arms of others"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name


def load_study(path: Path) -> StudyConfig:
    """Reads a study.

    Raises:
        ConfigError: no such file, not YAML, or a key that is unknown or out of range.
    """
    data = read_mapping(path)
    if isinstance(recipe := data.get("recipe"), str):
        data["recipe"] = str((path.parent / recipe).resolve())
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {found}") from error
