"""A plug-in ready to score: called as it wants to be, its scores checked, its failures traced to a sample."""

import inspect
import math
import time
from collections.abc import Iterable, Mapping, Sized
from difflib import get_close_matches
from typing import Any

from deltarl.reward.batch import Batch
from deltarl.reward.log import RewardLog
from deltarl.reward.plugin import RewardPluginError
from deltarl.reward.protocols import BadCallError, RewardFunction, call_by_column, call_openrlhf, protocol_of
from deltarl.reward.signature import Signature

_EXCERPT_CHARS = 80
_SEARCH_SECONDS = 10.0


class Plugin:
    """One reward function.

    Args:
        fn: written for this project or TRL, verl or OpenRLHF (see ``protocols``); sync or async. Where it is called
            by keyword, it gets what its signature accepts: every column if it takes ``**kwargs``.
        name: what errors call it; its function name by default.
        arguments: values for its other parameters.

    Raises:
        RewardPluginError: it has no parameter for an argument, or cannot be called by keyword.
    """

    def __init__(self, fn: RewardFunction, name: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        self.name = name or (fn.__name__ if inspect.isfunction(fn) else repr(fn))
        self._fn, self._arguments = fn, dict(arguments or {})
        try:
            self._signature = Signature(fn)
        except (TypeError, ValueError) as error:
            raise self._error(f"has no readable signature ({error}); wrap it in a function") from error
        self._protocol = protocol_of(self._signature)
        self._check_parameters()

    def score(self, batch: Batch, log: RewardLog | None = None) -> list[float | None]:
        """N scores; None skips a sample. Bools and numpy or torch scalars are converted.

        Raises:
            RewardPluginError: the plug-in needs a column that does not exist, raises, or returns the wrong number or
                type of scores, or one that is not finite.
        """
        try:
            scores = self._run(batch, log or RewardLog(len(batch)))
        except BadCallError as error:
            raise self._error(str(error)) from error
        except Exception as error:
            where = self._culprit(batch) + self._hint(error)
            raise self._error(f"raised {type(error).__name__}: {error}{where}") from error
        if (
            isinstance(scores, str | bytes | Mapping)
            or not isinstance(scores, Iterable)
            or not isinstance(scores, Sized)
        ):
            raise self._error(f"returned a {type(scores).__name__}; it must return a list of {len(batch)} floats")
        if len(scores) != len(batch):
            where = self._culprit(batch)
            if not where and len(scores) < len(batch):
                where = f" (no score for{_excerpt(batch, len(scores))})"
            raise self._error(f"returned {len(scores)} scores for {len(batch)} completions{where}")
        return [self._as_score(score, index) for index, score in enumerate(scores)]

    def _run(self, batch: Batch, log: RewardLog) -> Any:
        return self._protocol(self._fn, self._signature, batch, self._arguments, log)

    def _check_parameters(self) -> None:
        names, positional = self._signature.named, self._signature.positional_only
        if positional and self._protocol is not call_openrlhf:
            kind = "columns go by keyword" if self._protocol is call_by_column else "verl passes it by keyword"
            raise self._error(f"cannot be called: {positional[0]!r} is positional-only; {kind}")
        for argument in self._arguments:
            if argument not in names and not self._signature.takes_any:
                near = get_close_matches(argument, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, names)) or 'none'}"
                raise self._error(f"has no parameter {argument!r} to set{hint}")

    def _culprit(self, batch: Batch) -> str:
        """Which sample goes wrong when scored alone, as the end of an error message; empty if none does in time."""
        deadline = time.monotonic() + _SEARCH_SECONDS
        for index in range(len(batch)):
            try:
                alone = len(self._run(batch.sample(index), RewardLog(1))) == 1
            except Exception:
                alone = False
            if not alone:
                return f" (on{_excerpt(batch, index)})"
            if time.monotonic() > deadline:
                break
        return ""

    def _hint(self, error: Exception) -> str:
        if self._protocol is not call_by_column:
            return ""
        if self._signature.wants_messages:
            return "; it was given chat messages, and is given text if it says completions: list[str]"
        if isinstance(error, TypeError) and "indices" in str(error):
            return "; it was given text, and is given chat messages if it says completions: list[list[dict]]"
        return ""

    def _as_score(self, score: Any, index: int) -> float | None:
        if score is None:
            return None
        try:
            if isinstance(score, str | bytes):
                raise TypeError  # float() would take "1.0"
            value = float(score)
        except (TypeError, ValueError):
            raise self._error(
                f"returned a {type(score).__name__} for sample {index}; it must be a float or None"
            ) from None
        if not math.isfinite(value):
            raise self._error(f"returned {value} for sample {index}; return None to skip a sample")
        return value

    def _error(self, problem: str) -> RewardPluginError:
        return RewardPluginError(f"reward {self.name!r} {problem}")


def _excerpt(batch: Batch, index: int) -> str:
    return f" sample {index}: {str(batch.completions[index])[:_EXCERPT_CHARS]!r}"
