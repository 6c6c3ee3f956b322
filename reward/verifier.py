"""From completions and golds to verdicts: extraction, a bounded in-process fast path, the pool for the rest."""

import functools
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Self

from deltarl.reward import exact
from deltarl.reward.approximate import differ, within
from deltarl.reward.decimals import as_decimal
from deltarl.reward.extract import MARKERS, candidates, extract_answer
from deltarl.reward.limits import MAX_FAST_DIGITS, ParseError, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.parse import parse_answer
from deltarl.reward.pool import WorkerPool
from deltarl.reward.structure import same_answer
from deltarl.reward.tree import Node, Text
from deltarl.reward.verdict import DecidedBy, Verdict, VerdictKind

_CACHED_GOLDS = 4_096
_CACHED_PAIRS = 16_384


@dataclass(frozen=True, slots=True)
class _Gold:
    text: str
    node: Node


@dataclass(frozen=True, slots=True)
class _Pair:
    answer: str
    pred: Node
    gold: _Gold

    @property
    def key(self) -> tuple[str, str]:
        return self.answer, self.gold.text

    def verdict(self, kind: VerdictKind, decided_by: DecidedBy | None, seconds: float, detail: str = "") -> Verdict:
        score = 1.0 if kind is VerdictKind.RIGHT else 0.0
        return Verdict(kind, score, self.answer, seconds, detail, decided_by, self.pred, self.gold.node)


class Verifier:
    """Scores mathematical answers. Thread-safe; use as a context manager, or call ``close``.

    Worker processes start only when an answer needs more than exact arithmetic.

    Args:
        timeout: wall-clock seconds one answer may take in a worker.
        num_workers: worker processes.
        marker: how a completion marks its answer; see ``extract_answer``.
    """

    def __init__(self, timeout: float = 2.0, num_workers: int = 1, marker: str = "boxed") -> None:
        if marker not in MARKERS:
            raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
        self.marker = marker
        self.pool = WorkerPool(timeout, num_workers)
        self._parse_gold = functools.lru_cache(_CACHED_GOLDS)(_parse_gold)
        self._parse = functools.lru_cache(_CACHED_PAIRS)(_parse)
        self._pairs: OrderedDict[tuple[str, str], tuple[VerdictKind, DecidedBy | None]] = OrderedDict()
        self._lock = Lock()

    def score(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict for each completion, in order.

        Raises:
            ValueError: the two differ in length.
            TypeError: a completion is not text.
            WorkerStartError: a worker is needed and none can be started.
        """
        if len(completions) != len(golds):
            raise ValueError(f"{len(completions)} completions but {len(golds)} golds")
        verdicts: list[Verdict | None] = []
        pending: dict[tuple[str, str], list[int]] = {}
        pairs: list[_Pair] = []
        for index, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            if not isinstance(completion, str):
                raise TypeError(f"completion {index} is a {type(completion).__name__}; pass the text of its last turn")
            screened = self._screen(completion, gold)
            if isinstance(screened, Verdict):
                verdicts.append(screened)
            else:
                # Rollouts repeat answers: each pair is judged once.
                if screened.key not in pending:
                    pairs.append(screened)
                pending.setdefault(screened.key, []).append(index)
                verdicts.append(None)
        for pair, verdict in zip(pairs, self._judge(pairs), strict=True):
            for index in pending[pair.key]:
                verdicts[index] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def check_gold(self, gold: str) -> str | None:
        """Why ``gold`` cannot be scored against, or None where it can. For use when data is loaded."""
        parsed = self._parse_gold(gold)
        return parsed if isinstance(parsed, str) else None

    def close(self) -> None:
        """Kill the worker processes."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _screen(self, completion: str, gold: str) -> Verdict | _Pair:
        """The verdict if it can be had in this process, else the pair for a worker."""
        started = time.monotonic()

        def verdict(kind: VerdictKind, extracted: str | None = None, detail: str = "") -> Verdict:
            return Verdict(kind, 0.0, extracted, time.monotonic() - started, detail)

        parsed_gold = self._parse_gold(gold)
        if isinstance(parsed_gold, str):
            return Verdict(VerdictKind.ERROR, None, None, time.monotonic() - started, f"gold: {parsed_gold}")
        answer, pred = self._first_parsable(completion)
        if answer is None:
            return verdict(VerdictKind.NO_ANSWER)
        if isinstance(pred, str):
            return verdict(VerdictKind.UNPARSABLE, answer, pred)
        pair = _Pair(answer, pred, parsed_gold)
        with self._lock:
            known = self._pairs.get(pair.key)
            if known is not None:
                self._pairs.move_to_end(pair.key)
                return pair.verdict(*known, time.monotonic() - started)
        try:
            decided = _judge_here(pred, parsed_gold.node)
        except Exception as error:
            # No answer may end the run. The type only: the message may hold a number too large to print.
            return verdict(VerdictKind.ERROR, answer, type(error).__name__)
        if decided is None:
            return pair
        self._remember(pair, *decided)
        return pair.verdict(*decided, time.monotonic() - started)

    def _first_parsable(self, completion: str) -> tuple[str | None, Node | str]:
        """The first candidate that is mathematics, and its tree; else the first at all, and what is wrong with it."""
        first: tuple[str | None, Node | str] = (None, "")
        for answer in candidates(completion, self.marker):
            node = self._parse(answer)
            if not isinstance(node, str | Text):
                return answer, node
            if first[0] is None:
                first = (answer, node)
        return first

    def _judge(self, pairs: list[_Pair]) -> list[Verdict]:
        """Judge pairs in the pool, as many at a time as it has workers."""
        if not pairs:
            return []
        with ThreadPoolExecutor(self.pool.num_workers) as threads:
            return list(threads.map(self._judge_one, pairs))

    def _judge_one(self, pair: _Pair) -> Verdict:
        outcome = self.pool.judge(pair.answer, pair.gold.text)
        if outcome.kind in (VerdictKind.RIGHT, VerdictKind.WRONG):
            self._remember(pair, outcome.kind, outcome.decided_by)  # a timeout or crash may pass: not remembered
        return pair.verdict(outcome.kind, outcome.decided_by, outcome.seconds, outcome.detail)

    def _remember(self, pair: _Pair, kind: VerdictKind, decided_by: DecidedBy | None) -> None:
        with self._lock:
            self._pairs[pair.key] = kind, decided_by
            if len(self._pairs) > _CACHED_PAIRS:
                self._pairs.popitem(last=False)


def _judge_here(pred: Node, gold: Node) -> tuple[VerdictKind, DecidedBy] | None:
    """Right or wrong where that can be told quickly, else None."""
    comparison = _QuickComparison()
    try:
        right = same_answer(pred, gold, comparison.same_value)
    except UndefinedError:
        right = False
    except (UndecidedError, TooLargeError):
        return None
    return VerdictKind.RIGHT if right else VerdictKind.WRONG, comparison.decided_by


class _QuickComparison:
    def __init__(self) -> None:
        self.decided_by = DecidedBy.EXACT

    def same_value(self, pred: Node, gold: Node) -> bool:
        """By exact arithmetic; failing that, different if floats with their errors say so."""
        try:
            return exact.same_value(pred, gold, MAX_FAST_DIGITS)
        except UndecidedError:
            self.decided_by = DecidedBy.NUMERIC
            decimal = as_decimal(gold)
            if decimal is not None and decimal.may_be_rounded:
                inside = within(pred, decimal.value, decimal.half_unit)
                if inside is not None:
                    return inside
            elif decimal is None and differ(pred, gold):
                return False
            raise


def _parse(answer: str) -> Node | str:
    """The tree of an answer, or what is wrong with it."""
    try:
        return parse_answer(answer)
    except ParseError as error:
        return str(error)
    except Exception as error:
        return type(error).__name__  # no answer may end the run


def _parse_gold(gold: str) -> _Gold | str:
    """A gold answer, or what is wrong with it."""
    if not isinstance(gold, str):
        return f"a {type(gold).__name__}, not text; convert the column when the data is loaded"
    # A gold may come as a solution whose answer is in a box.
    text = (extract_answer(gold) if "boxed" in gold else None) or gold
    try:
        node = parse_answer(text)
        same_answer(node, node, _QuickComparison().same_value)
    except ParseError as error:
        return str(error)
    except UndefinedError as error:
        return f"has no value: {error}"
    except (UndecidedError, TooLargeError):
        pass
    except Exception as error:
        return type(error).__name__  # no gold may end the run
    return _Gold(text, node)
