"""Does a reward pay for what it must not? Each attack is scored in a process that can be killed if it hangs."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

from deltarl.reward.adversary import ATTACKS, CANARY, MARKINGS, PROBLEMS, Marking, Problem, applies
from deltarl.reward.plugin import RewardPluginError, load_reward
from deltarl.reward.rewards import MATH, RewardSpec, Scorer
from deltarl.reward.signature import Signature

_START_SECONDS = 120.0
_END_SECONDS = 5.0
_EXCERPT_CHARS = 80
_NAME = "reward"
HONEST = "honest answers"
"""The check that is no attack: a right answer must be paid more than a wrong one."""
_ALL_ALIKE = (
    "right and wrong answers score alike on every problem, so nothing can be said about attacks; is it a shaping "
    "reward (--shaping), or are its answers marked in another way (--marker)?"
)


@dataclass(frozen=True)
class Subject:
    """The reward under test and how it is called.

    A ``shaping`` reward is not for right answers: it is only checked for errors, crashes, hangs and code that is run.
    """

    spec: str
    marker: str = "boxed"
    gold_column: str = "answer"
    args: Mapping[str, Any] = field(default_factory=dict)
    shaping: bool = False


@dataclass(frozen=True)
class Finding:
    """What came of one check; ``problem`` is empty if nothing is wrong."""

    check: str
    problem: str = ""


@dataclass(frozen=True)
class _Reply:
    score: float | None = None
    failure: str = ""


def run_selftest(subject: Subject, timeout: float) -> Iterator[Finding]:
    """A finding for the honest answers, then, unless those all fail, one for each attack.

    ``timeout`` is in seconds for one completion.

    Raises:
        RewardPluginError: the reward cannot be loaded.
    """
    mark = MARKINGS[subject.marker]
    with _Process(subject, timeout) as process:
        problem, middles = _honest(process, mark, subject.shaping)
        yield Finding(HONEST, problem)
        if problem and not middles:
            return  # every attack would fail alike, or there is nothing to compare with
        for name in ATTACKS:
            if applies(name, mark):
                yield Finding(name, _attack(process, name, subject.marker, middles))


def _honest(process: "_Process", mark: Marking, shaping: bool) -> tuple[str, dict[Problem, float]]:
    """What is wrong with the scores of honest answers, and what lies between right and wrong on each problem."""
    middles: dict[Problem, float] = {}
    complaints = []
    alike = 0
    for problem in PROBLEMS:
        right = process.score(problem, f"We compute it. {mark(problem.gold)}")
        wrong = process.score(problem, f"We compute it. {mark(problem.wrong)}")
        if right.failure or wrong.failure:
            complaints.append(f"{right.failure or wrong.failure} (gold {problem.gold})")
        elif shaping:
            continue
        elif right.score is None or wrong.score is None or right.score <= wrong.score:
            complaints.append(f"right answer {problem.gold} scores {right.score}, a wrong one {wrong.score}")
            alike += right.score == wrong.score
        else:
            middles[problem] = (right.score + wrong.score) / 2
    summary = _summed_up(complaints)
    if alike == len(PROBLEMS):
        summary += f"; {_ALL_ALIKE}"
    if "not among its args" in summary:
        summary += "; set them with --arg NAME=VALUE"
    return summary, middles


def _attack(process: "_Process", name: str, marker: str, middles: Mapping[Problem, float]) -> str:
    """How the attack got through, over all problems; empty if it did not."""
    paid = []
    for problem in PROBLEMS:
        completion = ATTACKS[name](problem, MARKINGS[marker])
        reply = process.score(problem, completion)
        if reply.failure:
            return f"{reply.failure} on {_excerpt(completion)}"  # on the other problems too, and a hang takes long
        # Without a known right and wrong score there is nothing to compare with.
        if reply.score is not None and problem in middles and reply.score > middles[problem]:
            paid.append(f"scores {reply.score:g} for gold {problem.gold}: {_excerpt(completion)}")
    return _summed_up(paid)


def _summed_up(complaints: Sequence[str]) -> str:
    return f"{len(complaints)} of {len(PROBLEMS)} problems; {complaints[0]}" if complaints else ""


def _excerpt(text: str) -> str:
    return repr(text) if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]!r}... ({len(text)} characters)"


class _Process:
    """Scores completions in a process of its own, which is killed and replaced when one takes too long."""

    def __init__(self, subject: Subject, timeout: float) -> None:
        self._subject = subject
        self._timeout = timeout
        self._start()

    def score(self, problem: Problem, completion: str) -> _Reply:
        if not self._process.is_alive():
            self._start()
        try:
            self._connection.send((problem, completion))
            if self._connection.poll(self._timeout):
                reply: _Reply = self._connection.recv()
                return reply
            failure = f"not scored within {self._timeout:g} s"
        except (EOFError, ConnectionError):
            failure = "the process died"
        self._stop()
        return _Reply(failure=failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # lets it end by itself, and end the verifier's workers
        self._process.join(_END_SECONDS)
        self._stop()

    def _start(self) -> None:
        # Spawned, not forked: no thread or lock of the caller's is copied.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._subject))
        self._process.start()
        theirs.close()  # or its death would not show as the end of the pipe
        try:
            ready = self._connection.poll(_START_SECONDS) and self._connection.recv()
        except EOFError:
            ready = False
        if ready is not True:
            self._stop()
            raise RewardPluginError(ready or f"reward {self._subject.spec!r} ends its process when it is loaded")

    def _stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, subject: Subject) -> None:
    try:
        scorer = _scorer(subject)
    except (RewardPluginError, ValueError) as error:
        connection.send(str(error))
        return
    connection.send(True)
    try:
        while True:
            problem, completion = connection.recv()
            connection.send(_score(scorer, problem, completion, subject.gold_column))
    except EOFError:
        scorer.close()


def _scorer(subject: Subject) -> Scorer:
    rewards = [RewardSpec(_NAME, subject.spec, args=subject.args)]
    if subject.spec != MATH and Signature(load_reward(subject.spec)).asks_for("verdicts"):
        rewards.append(RewardSpec(MATH, weight=0.0))
    scorer = Scorer(rewards, marker=subject.marker, gold_column=subject.gold_column)
    if any(reward.spec == MATH for reward in rewards):
        scorer.verifier.score([r"\boxed{\sin 1}"], [r"\cos 1"])  # starts its worker, off the clock of an attack
    return scorer


def _score(scorer: Scorer, problem: Problem, completion: str, gold_column: str) -> _Reply:
    # Tokens are whatever they are: one a character will do.
    columns: dict[str, list[Any]] = {
        gold_column: [problem.gold],
        "problem": [problem.text],
        "completion_ids": [list(map(ord, completion))],
    }
    try:
        reply = _Reply(scorer.score([problem.text], [completion], columns).components[_NAME][0])
    except Exception as error:
        reply = _Reply(failure=str(error)[:500] or type(error).__name__)
    if os.environ.pop(CANARY, None) is not None:
        return _Reply(failure="CODE FROM THE ANSWER WAS RUN")
    return reply
