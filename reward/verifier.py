"""From completions and golds to verdicts: extraction, a bounded in-process fast path, the pool for the rest."""

import functools
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Self

from deltarl.reward import exact
from deltarl.reward.extract import MARKERS, candidates, extract_answer
from deltarl.reward.limits import MAX_FAST_DIGITS, ParseError, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.parse import parse_answer
from deltarl.reward.pool import WorkerPool
from deltarl.reward.structure import same_answer
from deltarl.reward.tree import Node, Text
from deltarl.reward.verdict import Verdict, VerdictKind

_CACHED_GOLDS = 4_096
_CACHED_PAIRS = 16_384

_same_value = functools.partial(exact.same_value, max_digits=MAX_FAST_DIGITS)


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
        self._pairs: OrderedDict[tuple[str, str], VerdictKind] = OrderedDict()
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
        for index, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            if not isinstance(completion, str):
                raise TypeError(f"completion {index} is a {type(completion).__name__}; pass the text of its last turn")
            screened = self._screen(completion, gold)
            if isinstance(screened, Verdict):
                verdicts.append(screened)
            else:
                # Rollouts repeat answers: each pair is judged once.
                pending.setdefault(screened, []).append(index)
                verdicts.append(None)
        for pair, verdict in zip(pending, self._judge(list(pending)), strict=True):
            for index in pending[pair]:
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

    def _screen(self, completion: str, gold: str) -> Verdict | tuple[str, str]:
        """The verdict if it can be had in this process, else the (answer, gold) pair for a worker."""
        started = time.monotonic()

        def verdict(kind: VerdictKind, extracted: str | None = None, detail: str = "") -> Verdict:
            return _verdict(kind, extracted, time.monotonic() - started, detail)

        parsed_gold = self._parse_gold(gold)
        if isinstance(parsed_gold, str):
            return Verdict(VerdictKind.ERROR, None, None, time.monotonic() - started, f"gold: {parsed_gold}")
        answer, pred = _first_parsable(completion, self.marker)
        if answer is None:
            return verdict(VerdictKind.NO_ANSWER)
        with self._lock:
            known = self._pairs.get((answer, gold))
            if known is not None:
                self._pairs.move_to_end((answer, gold))
                return verdict(known, answer)
        if isinstance(pred, str):
            return verdict(VerdictKind.UNPARSABLE, answer, pred)
        try:
            kind = _judge_exactly(pred, parsed_gold)
        except Exception as error:
            # No answer may end the run. The type only: the message may hold a number too large to print.
            return verdict(VerdictKind.ERROR, answer, type(error).__name__)
        if kind is None:
            return answer, gold
        self._remember((answer, gold), kind)
        return verdict(kind, answer)

    def _judge(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judge pairs in the pool, as many at a time as it has workers."""
        if not pairs:
            return []
        with ThreadPoolExecutor(self.pool.num_workers) as threads:
            return list(threads.map(self._judge_one, pairs))

    def _judge_one(self, pair: tuple[str, str]) -> Verdict:
        outcome = self.pool.judge(*pair)
        if outcome.kind in (VerdictKind.RIGHT, VerdictKind.WRONG):
            self._remember(pair, outcome.kind)  # a timeout or crash may pass: not remembered
        return _verdict(outcome.kind, pair[0], outcome.seconds, outcome.detail)

    def _remember(self, pair: tuple[str, str], kind: VerdictKind) -> None:
        with self._lock:
            self._pairs[pair] = kind
            if len(self._pairs) > _CACHED_PAIRS:
                self._pairs.popitem(last=False)


def _verdict(kind: VerdictKind, extracted: str | None, seconds: float, detail: str) -> Verdict:
    return Verdict(kind, 1.0 if kind is VerdictKind.RIGHT else 0.0, extracted, seconds, detail)


def _first_parsable(completion: str, marker: str) -> tuple[str | None, Node | str]:
    """The first candidate that is mathematics, and its tree; else the first at all, and what is wrong with it."""
    first: tuple[str | None, Node | str] = (None, "")
    for answer in candidates(completion, marker):
        try:
            node: Node | str = parse_answer(answer)
        except ParseError as error:
            node = str(error)
        except Exception as error:
            node = type(error).__name__
        if not isinstance(node, str | Text):
            return answer, node
        if first[0] is None:
            first = (answer, node)
    return first


def _judge_exactly(pred: Node, gold: Node) -> VerdictKind | None:
    """Right or wrong where exact arithmetic decides, else None."""
    try:
        return VerdictKind.RIGHT if same_answer(pred, gold, _same_value) else VerdictKind.WRONG
    except UndefinedError:
        return VerdictKind.WRONG
    except (UndecidedError, TooLargeError):
        return None


def _parse_gold(gold: str) -> Node | str:
    """The tree of a gold answer, or what is wrong with it."""
    if not isinstance(gold, str):
        return f"a {type(gold).__name__}, not text; convert the column when the data is loaded"
    try:
        # A gold may come as a solution whose answer is in a box.
        boxed = extract_answer(gold) if "boxed" in gold else None
        node = parse_answer(gold if boxed is None else boxed)
        same_answer(node, node, _same_value)
    except ParseError as error:
        return str(error)
    except UndefinedError as error:
        return f"has no value: {error}"
    except (UndecidedError, TooLargeError):
        pass
    return node
