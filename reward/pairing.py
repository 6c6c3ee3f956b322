"""From a completion, a gold and a question to the pair of answers to compare, or to a verdict that needs none."""

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from deltarl.reward.choices import fold, letters_of, read_choice
from deltarl.reward.diagnose import why_different
from deltarl.reward.extract import candidates
from deltarl.reward.form import leaves_function, refusal
from deltarl.reward.operators import names_operator
from deltarl.reward.question import Question
from deltarl.reward.quick import judge_quickly
from deltarl.reward.reading import Gold, Unread, read_answer, read_gold
from deltarl.reward.tree import Node, Text
from deltarl.reward.undone import leaves_undone
from deltarl.reward.verdict import MEANINGS, DecidedBy, Reason, Verdict, VerdictKind

_CACHED_GOLDS = 4_096
_CACHED_ANSWERS = 16_384
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*percent\s*\}|\bpercent)[\s$.]*$")
# What a verdict of a worker means where no more is known.
_REASONS = {
    VerdictKind.UNPARSABLE: Reason.UNREADABLE,
    VerdictKind.TIMEOUT: Reason.TIMEOUT,
    VerdictKind.ERROR: Reason.CRASH,
}


@dataclass(frozen=True, slots=True)
class Settled:
    """An answer that needs no comparison."""

    reason: Reason
    answer: str | None = None
    detail: str = ""

    def verdict(self, seconds: float) -> Verdict:
        kind, _ = MEANINGS[self.reason]
        score = 1.0 if kind is VerdictKind.RIGHT else 0.0
        return Verdict(kind, score, self.answer, seconds, self.detail, reason=self.reason)


class Pair(NamedTuple):
    """``answer``, read as ``pred``, to be compared with ``gold``; ``shown`` is what was extracted.

    ``reason`` is why it is right if the two are equal.
    """

    shown: str
    answer: str
    pred: Node
    gold: Gold
    question: Question
    reason: Reason = Reason.EQUAL

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What its verdict depends on."""
        return self.shown, self.answer, self.gold.text, self.question.text

    def verdict(self, kind: VerdictKind, decided_by: DecidedBy | None, seconds: float, detail: str = "") -> Verdict:
        """The verdict, given how the comparison alone ended."""
        try:
            reason = self._reason(kind)
        except Exception as error:  # no answer may end the run
            reason, detail = Reason.CRASH, type(error).__name__
        kind, _ = MEANINGS[reason]
        score = 1.0 if kind is VerdictKind.RIGHT else 0.0
        return Verdict(kind, score, self.shown, seconds, detail, decided_by, self.pred, self.gold.node, reason)

    def _reason(self, kind: VerdictKind) -> Reason:
        if kind not in (VerdictKind.RIGHT, VerdictKind.WRONG):
            return _REASONS[kind]
        if kind is VerdictKind.RIGHT and self.reason is Reason.EQUAL_OPTION:
            return self.reason  # an option is worked out as far as the question wants it
        if leaves_function(self.pred, self.gold.node):
            return Reason.UNSOLVED
        if kind is VerdictKind.WRONG:
            return why_different(self.pred, self.gold.node)
        refused = refusal(self.pred, self.gold.node, self.question)
        if refused is None and leaves_undone(self.pred, self.gold.node, self.question):
            return Reason.UNSIMPLIFIED
        return refused or self.reason


class Pairing:
    """Finds the answer of a completion, and what it is to be compared with. Thread-safe.

    Attributes:
        read_gold: ``reading.read_gold``, remembered: the golds of a data set come back with every sample.
    """

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.read_gold = functools.lru_cache(_CACHED_GOLDS)(read_gold)
        self._read_answer = functools.lru_cache(_CACHED_ANSWERS)(read_answer)

    def find(self, completion: str, gold: Gold, question: Question) -> Pair | Settled:
        """The first candidate that is mathematics, or an option, or words if gold is.

        Else the first at all, or why there is none.
        """
        first: Pair | Settled | None = None
        for answer in candidates(completion, self._marker):
            if isinstance(answer, Reason):
                if first is None or (isinstance(first, Settled) and answer in (Reason.RETRACTED, Reason.AMBIGUOUS)):
                    return Settled(answer)
                break
            found = self._choose(answer, gold, question) or self._read(answer, answer, gold, question)
            if isinstance(found, Pair) and (isinstance(gold.node, Text) or not isinstance(found.pred, Text)):
                return found
            if isinstance(found, Settled) and not found.detail:
                return found
            first = first or found
        assert first is not None  # ``candidates`` ends with a reason
        return first

    def _choose(self, answer: str, gold: Gold, question: Question) -> Pair | Settled | None:
        """How an answer to a multiple-choice problem is to be judged; None where it is judged as any other."""
        options = question.options
        if gold.choice is None and not options:
            return None
        choice = read_choice(answer, any_case=bool(options))
        (gold_letter,) = gold.choice.letters if gold.choice else ("",)
        if gold_letter and (gold_letter in options or not options):
            if choice is not None:
                own = letters_of(choice.text, options)
                letters = choice.letters & own if own else choice.letters  # none of "B. 15 km" if that is what C says
                if len(letters) != 1:
                    return Settled(Reason.AMBIGUOUS, answer)
                return self._read(answer, next(iter(letters)), gold, question)
            option = options.get(gold_letter) or (gold.choice.text if gold.choice else "")
            return self._as_option(answer, option, question) if option else None
        if choice is None or len(choice.letters) != 1:
            return None
        (letter,) = choice.letters
        same, own = letters_of(gold.text, options), letters_of(choice.text, options)
        if letter not in options or (own and letter not in own):
            return None
        if same:
            return Settled(Reason.EQUAL_OPTION if letter in same else Reason.DIFFERENT, answer)
        return self._read(answer, options[letter], gold, question, Reason.EQUAL_OPTION)

    def _as_option(self, answer: str, option: str, question: Question) -> Pair | Settled:
        """How an answer compares with the text of the right option."""
        gold = self.read_gold(option)
        if fold(answer) == fold(option):
            return Settled(Reason.EQUAL_OPTION, answer)
        if isinstance(gold, Unread) or letters_of(answer, question.options):
            return Settled(Reason.DIFFERENT, answer)
        return self._read(answer, answer, gold, question, Reason.EQUAL_OPTION)

    def _read(
        self, shown: str, answer: str, gold: Gold, question: Question, reason: Reason = Reason.EQUAL
    ) -> Pair | Settled:
        pred = self._read_answer(answer)
        if not isinstance(pred, Unread):
            pair = Pair(shown, answer, pred, gold, question, reason)
            return self._without_percent(pair) or pair
        return Settled(Reason.UNSOLVED if names_operator(answer) else pred.reason, shown, pred.detail)

    def _without_percent(self, pair: Pair) -> Pair | None:
        """The pair without the percent sign of one side, if they are equal so and the question makes it superfluous."""
        if not pair.question.asks_percent:
            return None
        marked, gold_marked = (_PERCENT.search(text) is not None for text in (pair.answer, pair.gold.text))
        if marked == gold_marked:
            return None
        answer = _PERCENT.sub("", pair.answer)
        pred, gold = self._read_answer(answer), self.read_gold(_PERCENT.sub("", pair.gold.text))
        if isinstance(pred, Unread) or isinstance(gold, Unread):
            return None
        compared = judge_quickly(pred, gold.node)
        if compared is None or not compared[0]:
            return None
        return Pair(pair.shown, answer, pred, gold, pair.question, Reason.EQUAL_PERCENT)
