"""Fuzzing: whatever a model writes, there is a verdict in time and memory, and the next answer is judged as ever."""

import itertools
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hostile import completions, golds
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.reward.verifier import Verifier

SECONDS = 2.0
BYTES = 512 << 20


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout=1.0) as verifier:
        yield verifier


def judged(verifier: Verifier, completion: str, gold: str) -> tuple[Verdict, float]:
    """The verdict and its seconds."""
    started = time.monotonic()
    (verdict,) = verifier.score([completion], [gold])
    return verdict, time.monotonic() - started


def judges_as_ever(verifier: Verifier, n: int) -> bool:
    """Whether two easy answers, one for this process and one for a worker, are found right."""
    (here,) = verifier.score([rf"\boxed{{{n}/2 + {n}}}"], [rf"\frac{{{3 * n}}}{{2}}"])
    return here.correct and verifier.pool.judge(f"x + {n}x", f"{n + 1}x").kind is VerdictKind.RIGHT


def most_bytes() -> int:
    """The most memory that this process, or one that it or its children waited for, ever had."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 300), pytest.param(2, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(7_200)])],
)
def test_every_hostile_answer_has_a_verdict_and_the_next_is_judged_as_ever(
    verifier: Verifier, seed: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = itertools.count()
    kinds: Counter[str] = Counter()
    slowest = 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def judge(data: st.DataObject) -> None:
        nonlocal slowest
        gold = data.draw(golds)
        completion = data.draw(completions(gold))
        n = next(numbers)
        verdict, seconds = judged(verifier, completion, gold)
        if seconds >= SECONDS or not judges_as_ever(verifier, n):
            # The clock is on the wall: other programs may have held up anything. Not twice the same, from the start.
            with Verifier(timeout=1.0) as fresh:
                assert any(judges_as_ever(fresh, n) for _ in range(3))
                verdict, seconds = judged(fresh, completion, gold)
                assert judges_as_ever(fresh, n), f"after {completion[:2_000]!r} against {gold!r}"
        shown = f"{completion[:2_000]!r} against {gold!r}: {verdict.kind}, {verdict.detail[:200]}, {seconds:.2f} s"
        assert seconds < SECONDS, shown
        assert verdict.kind is not VerdictKind.ERROR or verdict.score is None, shown
        assert verdict.score in (None, 0.0, 1.0), shown
        kinds[verdict.kind if verdict.score is not None else "unparsable gold"] += 1
        slowest = max(slowest, seconds)

    judge()
    assert kinds.total() >= count
    print(f"{count} answers: {dict(kinds)}, slowest {slowest:.2f} s")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES
    before = most_bytes()
    pids = verifier.pool.pids()
    verifier.close()
    assert most_bytes() <= max(before, BYTES)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not list(tmp_path.iterdir())


def test_workers_do_without_gmpy2(verifier: Verifier) -> None:
    """Says something where there is gmpy2: PYTHONPATH may name a folder that it was installed into."""
    pytest.importorskip("gmpy2")
    answers = ("((20!)!)!", "(10^9)!", r"\binom{10^9}{5\cdot10^8}", "9^{9^{9^9}}")
    for answer, gold in itertools.product(answers, ("42", r"\sqrt 2")):
        (verdict,) = verifier.score([rf"\boxed{{{answer}}}"], [gold])
        assert verdict.kind in (VerdictKind.WRONG, VerdictKind.UNPARSABLE)
    assert verifier.pool.judge(r"2 \sin x \cos x", r"\sin 2x").kind is VerdictKind.RIGHT
    server, worker = verifier.pool.pids()
    assert not any("gmpy2" in Path(f"/proc/{pid}/maps").read_text() for pid in (server, worker))
