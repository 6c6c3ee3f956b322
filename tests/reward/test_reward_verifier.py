"""From completions to verdicts, hostile ones included."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltarl.reward
from deltarl.reward.parse import parse_answer
from deltarl.reward.verdict import DecidedBy, VerdictKind
from deltarl.reward.verifier import Verifier

# signature.py looks at the user's own functions, never at an answer.
SOURCES = sorted(p for p in Path(deltarl.reward.__path__[0]).rglob("*.py") if p.name != "signature.py")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout=1.0) as verifier:
        yield verifier


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


def test_each_kind(verifier: Verifier) -> None:
    completions = [boxed("42"), boxed("41"), "42", boxed("4 2 ("), boxed("42")]
    verdicts = verifier.score(completions, ["42"] * 4 + [r"\int f"])
    kinds = [VerdictKind.RIGHT, VerdictKind.WRONG, VerdictKind.NO_ANSWER, VerdictKind.UNPARSABLE, VerdictKind.ERROR]
    assert [verdict.kind for verdict in verdicts] == kinds
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0, 0.0, None]
    assert [verdict.extracted for verdict in verdicts] == ["42", "41", None, "4 2 (", None]
    assert verdicts[4].detail == r"gold: unknown command '\\int'"


def test_a_verdict_says_what_decided_and_how_both_sides_were_read(verifier: Verifier) -> None:
    pairs = [("1/2", "0.5"), (r"\sin 2x", "x"), (r"\sin 2x", r"2 \sin x \cos x")]
    verdicts = verifier.score([boxed(pred) for _, pred in pairs], [gold for gold, _ in pairs])
    again = verifier.score([boxed(pred) for _, pred in pairs], [gold for gold, _ in pairs])
    for found in (verdicts, again):  # judged, and remembered
        assert [v.decided_by for v in found] == [DecidedBy.EXACT, DecidedBy.NUMERIC, DecidedBy.SYMBOLIC]
        assert [v.correct for v in found] == [True, False, True]
        assert [(v.pred, v.gold) for v in found] == [(parse_answer(p), parse_answer(g)) for g, p in pairs]
    (unread,) = verifier.score(["no box"], ["1"])
    assert (unread.decided_by, unread.pred, unread.gold) == (None, None, None)


def test_a_gold_may_be_a_boxed_solution(verifier: Verifier) -> None:
    assert verifier.score([boxed("4")], [r"So $x = \boxed{4}$."])[0].correct
    assert verifier.score([boxed(r"2 \sin x \cos x")], [r"So \boxed{\sin 2x}."])[0].correct  # in a worker


def test_order_survives_a_mix_of_fast_and_slow_paths(verifier: Verifier) -> None:
    completions = [boxed(r"2\sin x\cos x"), boxed("1"), boxed(r"2\sin x\cos x"), boxed("x"), boxed(r"\cos x")]
    verdicts = verifier.score(completions, [r"\sin 2x", "1", r"\sin 2x", "y", r"\sin x"])
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "((20!)!)!",
        "10^{9999}!",
        "x^{9^{9^9}}",
        r"\binom{10^9}{5}",
        "e^{e^{e^{e^{e^{9}}}}}",
        "(((" * 100,
        r"\frac" * 180,
        r"\sqrt{" * 100,
        "9" * 999,
        "-" * 900,
        "|" * 900,
        "x^" * 400 + "2",
        r"\text{" * 100 + "}" * 100,
        "1,234" * 150,
        "4\u200b2",
        "\u202e42",
        "__import__('os').system('touch pwned')",
        "42; import os",
        "[x for x in ().__class__.__base__.__subclasses__()]",
        'Integer("42")',
        r"\input{/etc/passwd}",
        r"((x+y+z+t)^2+2(x+y+z+t)(w+a+b)+(w+a+b)^2)^{10}",
        r"\tan(\tan(\tan(\tan(10^{999}))))",
        r"\lfloor 10^{9999} \pi \rfloor",
    ],
)
@pytest.mark.parametrize("gold", ["42", r"\sqrt{2}"])
def test_hostile_answers_are_verdicts_and_never_right(verifier: Verifier, answer: str, gold: str) -> None:
    [verdict] = verifier.score([boxed(answer)], [gold])
    assert verdict.kind in (VerdictKind.WRONG, VerdictKind.UNPARSABLE, VerdictKind.NO_ANSWER)
    assert verdict.score == 0.0


def test_a_timeout_is_counted_once_and_hurts_no_neighbour(verifier: Verifier) -> None:
    slow = boxed(r"((x+y+z+t)^2+2(x+y+z+t)(w+a+b)+(w+a+b)^2)^{10}")
    gold = "(x+y+z+t+w+a+b)^{20}"
    verdicts = verifier.score([slow, boxed(r"\sin^2 x"), slow], [gold, r"1 - \cos^2 x", gold])
    assert [verdict.kind for verdict in verdicts] == [VerdictKind.TIMEOUT, VerdictKind.RIGHT, VerdictKind.TIMEOUT]
    assert verdicts[0] is verdicts[2]


def test_judged_pairs_are_remembered() -> None:
    with Verifier(timeout=20.0) as verifier:
        completions, golds = [boxed(r"\sin^2 x")], [r"1 - \cos^2 x"]
        assert verifier.score(completions, golds)[0].kind is VerdictKind.RIGHT
        verifier.close()
        # The workers are gone; only the cache can know.
        assert verifier.score(completions, golds)[0].kind is VerdictKind.RIGHT


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ("42", None),
        (r"\frac{\sqrt 3}{2}", None),
        ("9^{9^9}", None),
        (r"\sum k", "unknown command"),
        ("1/0", "no value"),
        ("(1, 1/0)", "no value"),
        ("", "ends too early"),
        (42, "a int, not text"),
    ],
)
def test_check_gold(verifier: Verifier, gold: str, problem: str | None) -> None:
    found = verifier.check_gold(gold)
    assert found is None if problem is None else found is not None and problem in found


def test_bad_arguments_are_refused(verifier: Verifier) -> None:
    with pytest.raises(ValueError, match="2 completions but 1 golds"):
        verifier.score(["", ""], [""])
    with pytest.raises(TypeError, match="completion 0 is a list"):
        verifier.score([[{"role": "assistant", "content": ""}]], ["1"])  # type: ignore[list-item]  # the point
    with pytest.raises(ValueError, match="unknown answer marker"):
        Verifier(marker="box")
    with pytest.raises(ValueError, match="num_workers is 0"):
        Verifier(num_workers=0)
    with pytest.raises(ValueError, match="timeout is 0"):
        Verifier(timeout=0)


def test_scoring_simple_answers_imports_no_heavy_library() -> None:
    code = (
        "import sys; from deltarl.reward.rewards import Scorer, RewardSpec\n"
        "report = Scorer([RewardSpec('math')]).score(['?'], ['\\\\boxed{0.5}'], {'answer': ['1/2']})\n"
        "assert report.scores == [1.0]\n"
        "print(sorted({'sympy', 'mpmath', 'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_here_can_run_text(path: Path) -> None:
    forbidden = {
        "eval",
        "exec",
        "compile",
        "parse_expr",
        "sympify",
        "S",
        "lambdify",
        "parse_latex",
        "getattr",
        "symbols",
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            is_regex = (
                name == "compile" and isinstance(function, ast.Attribute) and ast.unparse(function) == "re.compile"
            )
            assert is_regex or name not in forbidden, f"{path.name}:{node.lineno} calls {name}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {module.split(".")[0] for module in modules} & {"torch", "ray", "pickle", "marshal"}
            assert not modules & forbidden
