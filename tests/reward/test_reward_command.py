"""The command `deltarl-verify`, from its arguments to its output and exit status."""

import gzip
import json
from pathlib import Path

import pytest

from deltarl.reward.adversary import ATTACKS, MARKINGS, PROBLEMS, applies
from deltarl.reward.command import main
from deltarl.reward.extract import MARKERS
from deltarl.reward.plugin import BUILT_IN
from deltarl.reward.selftest import HONEST, Subject, run_selftest

SOUND = r'''
import re

BOX = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")

def reward(completions, answer):
    """Text after the thinking, last box, same characters."""
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion.rpartition("</think>")[2]
        boxes = [] if "<think>" in text else BOX.findall(text)
        scores.append(float(boxes[-1:] == [gold]))
    return scores

def substring(completions, answer):
    return [float(gold in completion) for completion, gold in zip(completions, answer, strict=True)]

def evaluating(completions, answer):
    try:
        [eval(box) for box in BOX.findall(completions[0])]
    except Exception:
        pass
    return reward(completions, answer)

def fragile(completions, answer):
    import os, time
    if completions[0] == "":
        raise ZeroDivisionError("empty")
    if "NaN" in completions[0]:
        time.sleep(60)
    if r"\infty" in completions[0]:
        os._exit(1)
    return reward(completions, answer)

def any_box(completions, answer):
    return [float(gold in BOX.findall(completion)) for completion, gold in zip(completions, answer, strict=True)]

def number(completions, answer):
    """As many a home-made grader: how near the last box comes, else the same text."""
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        boxes = BOX.findall(completion) or [""]
        try:
            scores.append(1 / (1 + abs(float(boxes[-1]) - float(gold))))
        except ValueError:
            scores.append(float(boxes[-1] == gold))
    return scores

def constant(completions):
    return [0.5] * len(completions)

def tuned(completions, answer, bonus):
    return [bonus * score for score in reward(completions, answer)]
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "rewards.py"
    path.write_text(SOUND)
    return str(path)


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_score_writes_verdicts_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(
        tmp_path / "answers.jsonl",
        {"id": "a", "text": r"\boxed{1/2}", "gold": "0.5"},
        {"text": r"\boxed{3}", "gold": "4"},
        {"text": "none", "gold": "4"},
        {"text": r"\boxed{3}", "gold": r"\nonsense"},
    )
    out = tmp_path / "verdicts.jsonl"
    assert main(["score", file, "--completion", "text", "--gold", "gold", "--out", str(out)]) == 0
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [verdict["line"] for verdict in verdicts] == [1, 2, 3, 4]
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.0, 0.0, None]
    assert verdicts[0]["id"] == "a"
    assert "id" not in verdicts[1]
    shown = capsys.readouterr()
    assert "25.00%" in shown.out
    assert "mean score 0.3333 over 3 answers; 1 skipped" in shown.out
    assert "scoring" in shown.err


def test_score_reads_whole_numbers_and_chat_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": r"\boxed{5}"}]
    assert main(["score", write(tmp_path / "answers.jsonl", {"completion": said, "answer": 5})]) == 0
    assert "right: equal" in capsys.readouterr().out


def test_gzipped_files_are_read_and_broken_ones_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"completion": "\\\\boxed{5}", "answer": "5"}\n' * 3))
    assert main(["score", str(path)]) == 0
    assert "over 3 answers" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["score", str(path)]) == 2
    assert f"cannot read {str(path)!r}: " in capsys.readouterr().err


def test_score_looks_at_the_question_if_told_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"completion": r"\boxed{17 \cdot 23}", "answer": "391", "problem": r"Compute $17 \cdot 23$."}
    file = write(tmp_path / "answers.jsonl", row)
    assert main(["score", file]) == 0
    assert "right: equal" in capsys.readouterr().out
    out = tmp_path / "verdicts.jsonl"
    assert main(["score", file, "--question", "problem", "--out", str(out)]) == 0
    assert "wrong: echo" in capsys.readouterr().out
    assert json.loads(out.read_text())["reason"] == "echo"
    assert main(["score", file, "--question", "problems"]) == 2
    assert "did you mean 'problem'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{\n", "x.jsonl:1: not JSON"),
        ('\n"text"\n', "x.jsonl:2: a str; give one JSON object on each line"),
        ('{"completions": "", "answer": ""}\n', "no field 'completion'; did you mean 'completions'?"),
        ('{"completion": "", "answer": 0.5}\n', "field 'answer' is 0.5; make it text, or choose another field with"),
        ('{"completion": [], "answer": "5"}\n', "field 'completion' is []; make it text, or choose another field"),
        (b"\xff\n", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_refused(
    content: str | bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["score", str(path)]) == 2
    error = capsys.readouterr().err
    assert "deltarl-verify score: error: " in error
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "x", "--marker", "box"], "invalid choice: 'box'"),
        (["score", "x", "--timeout", "0"], "0 must be more than 0"),
        (["explain", "only one"], "gold"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([r"so \boxed{2x/4}", "x/2"], ["'2x/4'", "Sym name='x'", "exact arithmetic", "right, score 1"]),
        ([r"\sin(2x)", r"2\sin x\cos x", "--bare"], ["Func name='sin'", "in a worker process", "right, score 1"]),
        (
            ["no box", "2"],
            [
                "nothing is marked as 'boxed' wants it; see --marker",
                "no_answer: nothing marks an answer",
                "no_answer, score 0",
            ],
        ),
        (["x^", "2", "--bare"], ["'x^'", "cannot be parsed: the answer ends too early", "unparsable"]),
        (["2", r"\nonsense", "--bare"], ["gold         cannot be parsed: unknown command", "skipped: no score"]),
        (["2", "2" * 900, "--bare"], ["a number of very many digits", "wrong"]),
        (["4\u200b2", "42", "--bare"], [r"'4\u200b2'"]),
        (["2*3", "6", "--bare", "--question", "Compute 2*3."], ["asks for a value", "echo: what the question wrote"]),
        (["B", "7", "--bare", "--question", "Which? (A) 6 (B) 7"], ["option B: '7'", "equal_option", "right, score 1"]),
    ],
)
def test_explain_shows_every_step(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 0
    shown = capsys.readouterr().out
    for text in expected:
        assert text in shown


def test_golds_lists_what_cannot_be_parsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = {"problem": "?", "answer": "5"}, {"problem": "?", "answer": r"\nonsense"}
    assert main(["golds", write(tmp_path / "good.jsonl", good)]) == 0
    assert main(["golds", write(tmp_path / "bad.jsonl", good, bad)]) == 1
    shown = capsys.readouterr().out
    assert r"bad.jsonl:2: '\\nonsense': unknown command" in shown
    assert "1 of 2 reference answers cannot be parsed" in shown
    assert main(["golds", write(tmp_path / "empty.jsonl")]) == 2


def test_selftest_passes_a_sound_reward(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"{plugin}:reward"]) == 0
    assert f"0 of {len(ATTACKS) + 1} checks failed" in capsys.readouterr().out


def test_selftest_says_what_got_through(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"{plugin}:substring"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  unterminated mark" in shown
    assert "scores 1 for gold 391: 'So we get \\\\boxed{391'" in shown
    assert "ok      honest answers" in shown
    assert "ok      empty answer" in shown


def test_selftest_names_what_a_bad_reward_lets_through(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"{plugin}:any_box"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("4 of ")
    assert last.endswith(
        "every candidate marked; right answer, then a wrong one; answer only inside <think>; <think> never closed"
    )
    failed = {f.check: f.problem for f in run_selftest(Subject(f"{plugin}:number"), timeout=5.0) if f.problem}
    assert "returned nan" in failed["not a number"]


def test_selftest_finds_code_hangs_crashes_and_errors(plugin: str) -> None:
    found = {f.check: f.problem for f in run_selftest(Subject(f"{plugin}:evaluating"), timeout=5.0) if f.problem}
    assert found.keys() == {"code"}
    assert "WAS RUN" in found["code"]
    found = {f.check: f.problem for f in run_selftest(Subject(f"{plugin}:fragile"), timeout=2.0) if f.problem}
    assert found.keys() == {"no text", "not a number", "infinity"}
    assert "raised ZeroDivisionError: empty" in found["no text"]
    assert "not scored within 2 s" in found["not a number"]
    assert "the process died" in found["infinity"]


def test_selftest_refuses_what_is_no_reward_for_right_answers(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"{plugin}:constant"]) == 1
    shown = capsys.readouterr().out
    assert "right answer 391 scores 0.5, a wrong one 0.5" in shown
    assert "is it a shaping reward (--shaping)" in shown
    assert "1 of 1 checks failed" in shown
    assert main(["selftest", f"{plugin}:absent"]) == 2
    assert "no 'absent' in" in capsys.readouterr().err


def test_selftest_sets_arguments(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"{plugin}:tuned", "--arg", "bonus=0.5"]) == 0
    assert main(["selftest", f"{plugin}:tuned", "--arg", "bonus"]) == 2
    assert "--arg 'bonus' is not of the form NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("marker", MARKERS)
def test_the_built_in_verifier_lets_nothing_through(marker: str) -> None:
    assert not [finding for finding in run_selftest(Subject("math", marker), timeout=5.0) if finding.problem]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_shaping_rewards_stand_the_attacks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"soft_overlong": ["--arg", "max_tokens=100", "--arg", "cache=20"]}
    assert main(["selftest", name, "--shaping", *needed.get(name, [])]) == 0, capsys.readouterr().out


def test_selftest_says_how_to_set_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "soft_overlong", "--shaping"]) == 1
    shown = capsys.readouterr().out
    assert "needs 'max_tokens', 'cache'" in shown
    assert "set them with --arg NAME=VALUE" in shown


def test_suite_is_consistent() -> None:
    assert MARKINGS.keys() == set(MARKERS)
    assert HONEST not in ATTACKS
    assert not applies("unterminated mark", MARKINGS["####"])
    for problem in PROBLEMS:
        assert {problem.gold, problem.wrong} < set(problem.candidates)
        assert problem.candidates[-1] == problem.wrong  # a grader that takes the last one takes a wrong one
