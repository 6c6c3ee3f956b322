"""Every reason of the closed set is given, and only where it fits."""

from collections.abc import Iterator

import pytest

from deltarl.reward.pool import Outcome
from deltarl.reward.verdict import MEANINGS, Reason, VerdictKind
from deltarl.reward.verifier import Verifier

R = Reason


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, Verifier]]:
    made = {marker: Verifier(timeout=1.0, marker=marker) for marker in ("boxed", "answer_tag", "anywhere")}
    yield made
    for verifier in made.values():
        verifier.close()


COMPUTE = r"Compute $17 \cdot 23$."
OPTIONS = "How far is it? (A) 10 km (B) 12 km (C) 15 km"
SLOW = r"((x+y+z+t)^2+2(x+y+z+t)(w+a+b)+(w+a+b)^2)^{10}"

# reason, gold, completion, question
CASES = [
    (R.EQUAL, r"\frac12", r"\boxed{0.5}", None),
    (R.EQUAL, "391", r"\boxed{17 \cdot 23 = 391}", COMPUTE),
    (R.EQUAL, "5", r"\boxed{2 + 3}", None),
    (R.EQUAL, "B", r"\boxed{(B)}", None),
    (R.EQUAL_OPTION, "B", r"\boxed{12 \text{ km}}", OPTIONS),
    (R.EQUAL_OPTION, "12 km", r"\boxed{B}", OPTIONS),
    (R.EQUAL_PERCENT, "25", r"\boxed{25\%}", "What percent of 80 is 20?"),
    (R.EQUAL_PERCENT, r"25\%", r"\boxed{25}", "What percent of 80 is 20?"),
    (R.DIFFERENT, "42", r"\boxed{41}", None),
    (R.DIFFERENT, "25", r"\boxed{25\%}", "What is 20% of 125?"),
    (R.DIFFERENT, "25", r"\boxed{25\%}", None),
    (R.DIFFERENT, "B", r"\boxed{C}", OPTIONS),
    (R.DIFFERENT, "B", r"\boxed{15 \text{ km}}", OPTIONS),
    (R.TYPE_MISMATCH, "42", r"\boxed{\text{forty or so}}", None),
    (R.TYPE_MISMATCH, "(1, 2]", r"\boxed{7}", None),
    (R.TYPE_MISMATCH, r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{3}", None),
    (R.AMBIGUOUS, "5", r"\boxed{4, 5}", None),
    (R.AMBIGUOUS, "5", r"\boxed{4} \boxed{5}", None),
    (R.AMBIGUOUS, "5", r"\boxed{5 \pm 1}", None),
    (R.AMBIGUOUS, "5", r"\boxed{[4, 6]}", None),
    (R.AMBIGUOUS, "B", r"\boxed{B or C}", None),
    (R.AMBIGUOUS, "B", r"\boxed{B. 15 km}", OPTIONS),
    (R.UNIT_CONFLICT, r"5 \text{ m}", r"\boxed{5 \text{ cm}}", None),
    (R.UNIT_CONFLICT, r"5 \text{ cats}", r"\boxed{5 \text{ dogs}}", None),
    (R.PRECISION, "785.12", r"\boxed{784.9}", None),
    (R.FALSE_CHAIN, "7", r"\boxed{1 = 2 = 7}", None),
    (R.TAUTOLOGY, "5", r"\boxed{5 = 5}", None),
    (R.ECHO, "391", r"\boxed{17 \cdot 23}", COMPUTE),
    (R.UNSIMPLIFIED, "391", r"\boxed{400 - 9}", COMPUTE),
    (R.UNSIMPLIFIED, "20", r"\boxed{" + "+".join("1" * 20) + "}", None),
    (R.UNSOLVED, r"\frac13", r"\boxed{\int_0^1 x^2 dx}", None),
    (R.UNSOLVED, "6", r"\boxed{\gcd(18, 24)}", None),
    (R.UNSOLVED, "9", r"\boxed{7^{222} \bmod 10}", None),
    (R.UNSOLVED, "2", r"\boxed{128 \mod 3}", None),
    (R.EQUAL, "2", r"\boxed{17 \bmod 5 = 2}", None),
    (R.NO_ANSWER, "42", "It is 42.", None),
    (R.EMPTY, "42", r"\boxed{ }", None),
    (R.UNTERMINATED, "42", r"\boxed{41}, no: \boxed{42", None),
    (R.UNFINISHED_THINKING, "42", r"<think>\boxed{42}", None),
    (R.TOO_LONG, "42", r"\boxed{" + "42 " * 1_000 + "}", None),
    (R.RETRACTED, "42", r"\boxed{42}. Wait, that is wrong.", None),
    (R.UNREADABLE, "42", r"\boxed{42 (}", None),
    (R.LIMITS, "42", r"\boxed{" + "(" * 100 + "42" + ")" * 100 + "}", None),
    (R.LIMITS, "42", r"\boxed{" + ",".join(["42"] * 60) + "}", None),
    (R.TIMEOUT, "(x+y+z+t+w+a+b)^{20}", rf"\boxed{{{SLOW}}}", None),
    (R.GOLD_UNREADABLE, r"\nonsense", r"\boxed{42}", None),
]


@pytest.mark.parametrize(("reason", "gold", "completion", "question"), CASES)
def test_reason(
    verifiers: dict[str, Verifier], reason: Reason, gold: str, completion: str, question: str | None
) -> None:
    (verdict,) = verifiers["boxed"].score([completion], [gold], [question])
    assert verdict.reason is reason, verdict
    assert verdict.kind is MEANINGS[reason][0]
    expected = None if reason is R.GOLD_UNREADABLE else float(verdict.kind is VerdictKind.RIGHT)
    assert verdict.score == expected


def test_a_crash_is_a_reason(verifiers: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifiers["boxed"]
    monkeypatch.setattr(verifier.pool, "judge", lambda *_: Outcome(VerdictKind.ERROR, "the worker process died", 0.1))
    (verdict,) = verifier.score([r"\boxed{\sin^2 x}"], [r"1 - \cos^2 x"])
    assert (verdict.reason, verdict.score, verdict.detail) == (R.CRASH, 0.0, "the worker process died")


def test_every_reason_is_explained_and_has_a_case() -> None:
    assert set(MEANINGS) == set(Reason)
    assert {reason for reason, *_ in CASES} | {R.CRASH} == set(Reason)


def test_other_markers_have_the_same_reasons(verifiers: dict[str, Verifier]) -> None:
    tags, anywhere = verifiers["answer_tag"], verifiers["anywhere"]
    assert tags.score(["<answer>42"], ["42"])[0].reason is R.UNTERMINATED
    assert tags.score(["<answer> </answer>"], ["42"])[0].reason is R.EMPTY
    assert anywhere.score(["It is 41 or 42"], ["42"])[0].reason is R.AMBIGUOUS
    assert anywhere.score(["It is definitely not 42"], ["42"])[0].reason is R.RETRACTED


def test_right_and_wrong_do_not_depend_on_the_order_of_samples(verifiers: dict[str, Verifier]) -> None:
    """The comparison is remembered for a pair; what the question makes of it is not."""
    completions, golds = [r"\boxed{17 \cdot 23}"] * 4, ["391"] * 4
    verdicts = verifiers["boxed"].score(completions, golds, [None, COMPUTE, None, COMPUTE])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0]


def test_questions_are_checked(verifiers: dict[str, Verifier]) -> None:
    with pytest.raises(ValueError, match="2 completions but 2 golds, 1 questions"):
        verifiers["boxed"].score(["", ""], ["1", "1"], ["?"])
    with pytest.raises(TypeError, match="question 0 is a int"):
        verifiers["boxed"].score([""], ["1"], [5])  # type: ignore[list-item]  # the point
