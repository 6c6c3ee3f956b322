"""What a plug-in scores: completions with their prompts, dataset columns and the state of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltarl.reward.verdict import Verdict

GOLD_NAMES = ("answer", "ground_truth", "gold", "label", "solution")
"""What frameworks call the reference answer. A plug-in that asks for one of them gets the one the data has."""


@dataclass(frozen=True)
class TrainerState:
    """How far the run is: ``global_step`` steps of ``max_steps`` are done. The two fields of TRL's that rewards use."""

    global_step: int = 0
    max_steps: int = 0


@dataclass(frozen=True)
class Batch:
    """N completions and what belongs to each.

    ``columns`` are the dataset's, of N values each; ``gold_column`` is the one of them the verifier compares with.
    ``verdicts`` is None where the verifier is not configured.
    """

    prompts: Sequence[Any]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    verdicts: Sequence[Verdict] | None = None
    state: TrainerState = field(default_factory=TrainerState)
    gold_column: str = "answer"

    def __len__(self) -> int:
        return len(self.completions)

    def sample(self, index: int) -> "Batch":
        """The batch that holds this sample alone."""
        columns = {name: [values[index]] for name, values in self.columns.items()}
        verdicts = None if self.verdicts is None else [self.verdicts[index]]
        return Batch([self.prompts[index]], [self.completions[index]], columns, verdicts, self.state, self.gold_column)

    def golds(self) -> Sequence[Any] | None:
        """The reference answers, under whatever name the data has them."""
        names = (self.gold_column, *GOLD_NAMES)
        return next((self.columns[name] for name in names if name in self.columns), None)
