"""Where problems come from, and how they become prompts."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.config.sampling import SamplingConfig
from deltarl.rl.section import Section


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
