"""What a plug-in wants to see logged besides its scores."""

import math
import re
from collections.abc import Sequence
from typing import Any


class RewardLog:
    """Collects what one plug-in logs about one batch of ``count`` completions.

    ``metrics`` holds the values of each scalar metric, ``extras`` the columns of one plain value for each completion.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.metrics: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}

    def metric(self, name: str, value: float) -> None:
        """TRL's ``log_metric``: a scalar; what is logged under one name in one step is averaged."""
        self.metrics.setdefault(_clean(name), []).append(float(value))

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's ``log_extra``: one value for each completion, shown beside it in samples.jsonl.

        Raises:
            ValueError: there are more or fewer values than completions.
        """
        if len(values) != self.count:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self.count} completions")
        self.extras[_clean(column)] = [_plain(value) for value in values]

    def entries(self, samples: Sequence[dict[str, Any]]) -> None:
        """What a function returned beside the score of each completion: columns, and the means of the numbers."""
        for name in dict.fromkeys(name for sample in samples for name in sample):
            self.extra(name, [sample.get(name) for sample in samples])
            values = self.extras[_clean(name)]
            if numbers := [value for value in values if isinstance(value, int | float)]:
                self.metric(name, sum(numbers) / len(numbers))


def _clean(name: str) -> str:
    """A name that is one part of a metric's path."""
    return re.sub(r"[/{}]", "_", name)


def _plain(value: Any) -> Any:
    """A value JSON can hold: numpy and torch scalars become numbers, NaN and infinity null, anything else text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
