"""From completions and golds to verdicts: extraction, a bounded in-process fast path, the pool for the rest."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Self

from deltarl.reward import forks
from deltarl.reward.extract import MARKERS
from deltarl.reward.pairing import Pair, Pairing, Settled
from deltarl.reward.pool import WorkerPool
from deltarl.reward.question import UNKNOWN, read_question
from deltarl.reward.quick import judge_quickly
from deltarl.reward.reading import Unread
from deltarl.reward.verdict import DecidedBy, Reason, Verdict, VerdictKind

_CACHED_PAIRS = 16_384


class Verifier:
    """Scores mathematical answers. Thread-safe; use as a context manager, or call ``close``.

    Worker processes start only when an answer needs more than exact arithmetic.

    Args:
        timeout: processor seconds one answer may take in a worker; see ``WorkerPool``.
        num_workers: worker processes.
        marker: how a completion marks its answer; see ``extract.candidates``.
    """

    def __init__(self, timeout: float = 1.0, num_workers: int = 1, marker: str = "boxed") -> None:
        if marker not in MARKERS:
            raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
        self.marker = marker
        self.pool = WorkerPool(timeout, num_workers)
        self._pairing = Pairing(marker)
        self._compared: OrderedDict[tuple[str, str], tuple[VerdictKind, DecidedBy | None]] = OrderedDict()
        self._lock = Lock()
        forks.register(self)

    def after_fork(self) -> None:
        """See ``forks.ForkAware``."""
        self._lock = Lock()

    def score(
        self, completions: Sequence[str], golds: Sequence[str], questions: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """One verdict for each completion, in order.

        Args:
            completions, golds: N each.
            questions: the problems, N as well. With them an answer that hands the question back or leaves its
                arithmetic undone is refused, an option's letter stands for its text, and where a percentage is asked
                for 25 stands for 25%. None where there is none.

        Raises:
            ValueError: they differ in length.
            TypeError: a completion or question is not text.
            WorkerStartError: a worker is needed and none can be started.
        """
        questions = [None] * len(completions) if questions is None else questions
        if not len(completions) == len(golds) == len(questions):
            counts = f"{len(completions)} completions but {len(golds)} golds"
            raise ValueError(counts if len(questions) == len(completions) else f"{counts}, {len(questions)} questions")
        verdicts: list[Verdict | None] = []
        pending: dict[tuple[str, ...], list[int]] = {}
        pairs: list[Pair] = []
        for index, (completion, gold, question) in enumerate(zip(completions, golds, questions, strict=True)):
            if not isinstance(completion, str):
                raise TypeError(f"completion {index} is a {type(completion).__name__}; pass the text of its last turn")
            if question is not None and not isinstance(question, str):
                raise TypeError(f"question {index} is a {type(question).__name__}; pass its text")
            screened = self._screen(completion, gold, question)
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
        read = self._pairing.read_gold(gold)
        return read.detail if isinstance(read, Unread) else None

    def close(self) -> None:
        """Kill the worker processes."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _screen(self, completion: str, gold_text: str, question_text: str | None) -> Verdict | Pair:
        """The verdict if it can be had in this process, else the pair for a worker."""
        started = time.monotonic()
        gold = self._pairing.read_gold(gold_text)
        if isinstance(gold, Unread):
            detail = f"gold: {gold.detail}"
            seconds = time.monotonic() - started
            return Verdict(VerdictKind.ERROR, None, None, seconds, detail, reason=Reason.GOLD_UNREADABLE)
        shown: str | None = None
        try:
            found = self._pairing.find(completion, gold, read_question(question_text) if question_text else UNKNOWN)
            if isinstance(found, Settled):
                return found.verdict(time.monotonic() - started)
            shown = found.shown
            compared = self._compare_here(found)
            return found if compared is None else found.verdict(*compared, time.monotonic() - started)
        except Exception as error:
            # No answer may end the run. The type only: the message may hold a number too large to print.
            return Settled(Reason.CRASH, shown, type(error).__name__).verdict(time.monotonic() - started)

    def _compare_here(self, pair: Pair) -> tuple[VerdictKind, DecidedBy | None] | None:
        """How the comparison of a pair ends, if that is known or can be told quickly."""
        key = (pair.answer, pair.gold.text)
        with self._lock:
            known = self._compared.get(key)
            if known is not None:
                self._compared.move_to_end(key)
                return known
        # The trees of texts are remembered, so that gold written alike is the same object.
        compared = pair.gold.itself if pair.pred is pair.gold.node else None
        compared = compared or judge_quickly(pair.pred, pair.gold.node)
        if compared is None:
            return None
        right, decided_by = compared
        return self._remember(pair, VerdictKind.RIGHT if right else VerdictKind.WRONG, decided_by)

    def _judge(self, pairs: list[Pair]) -> list[Verdict]:
        """Judge pairs in the pool, as many at a time as it has workers."""
        if len(pairs) < 2 or self.pool.num_workers == 1:
            return [self._judge_one(pair) for pair in pairs]
        with ThreadPoolExecutor(self.pool.num_workers) as threads:
            return list(threads.map(self._judge_one, pairs))

    def _judge_one(self, pair: Pair) -> Verdict:
        outcome = self.pool.judge(pair.answer, pair.gold.text)
        if outcome.kind in (VerdictKind.RIGHT, VerdictKind.WRONG):
            self._remember(pair, outcome.kind, outcome.decided_by)  # a timeout or crash may pass: not remembered
        return pair.verdict(outcome.kind, outcome.decided_by, outcome.seconds, outcome.detail)

    def _remember(
        self, pair: Pair, kind: VerdictKind, decided_by: DecidedBy | None
    ) -> tuple[VerdictKind, DecidedBy | None]:
        with self._lock:
            self._compared[pair.answer, pair.gold.text] = kind, decided_by
            if len(self._compared) > _CACHED_PAIRS:
                self._compared.popitem(last=False)
        return kind, decided_by
