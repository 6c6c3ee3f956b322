r"""The verifier on the command line.

deltarl-verify score answers.jsonl --out verdicts.jsonl     judge a file of completions
deltarl-verify explain '\boxed{0.5}' '1/2'                  why one answer is right or wrong
deltarl-verify golds problems.jsonl                         list the reference answers that cannot be parsed
deltarl-verify selftest my_reward.py:reward                 attack a reward plug-in
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deltarl.reward.explain import explain
from deltarl.reward.extract import MARKERS
from deltarl.reward.jsonl import InputError, read_rows, text_field
from deltarl.reward.plugin import RewardPluginError
from deltarl.reward.score_file import Fields, score_file, summary
from deltarl.reward.selftest import Subject, run_selftest
from deltarl.reward.verifier import Verifier

PROGRAM = "deltarl-verify"


def main(argv: Sequence[str] | None = None) -> int:
    """Console script ``deltarl-verify``. 0: done and nothing found, 1: something found, 2: it cannot be done."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (InputError, RewardPluginError) as error:
        print(f"{PROGRAM} {args.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for one, has seen enough; Python would still flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="judge a JSONL file of completions and count the verdicts by reason")
    score.set_defaults(run=_score)
    score.add_argument("file", type=Path, help="one JSON object on each line")
    score.add_argument("--completion", default="completion", metavar="FIELD", help="holds the completion (%(default)s)")
    score.add_argument("--gold", default="answer", metavar="FIELD", help="holds the reference answer (%(default)s)")
    score.add_argument("--question", metavar="FIELD", help="holds the problem; left out, it is not looked at")
    score.add_argument("--out", type=Path, help="write one verdict for each line to this JSONL file")
    score.add_argument("--workers", type=_positive(int), default=1, help="processes for hard answers (%(default)s)")
    _add_verifier_options(score)

    why = commands.add_parser("explain", help="one pair step by step: extraction, both trees, comparison, reason")
    why.set_defaults(run=_explain)
    why.add_argument("completion", help="the completion, or - for standard input")
    why.add_argument("gold", help="the reference answer")
    why.add_argument("--question", metavar="TEXT", help="the problem")
    why.add_argument("--bare", action="store_true", help="the completion is the answer itself, without a marker")
    _add_verifier_options(why)

    golds = commands.add_parser("golds", help="list reference answers that cannot be parsed; exit 1 if there are any")
    golds.set_defaults(run=_golds)
    golds.add_argument("file", type=Path, help="one JSON object on each line")
    golds.add_argument("--gold", default="answer", metavar="FIELD", help="holds the reference answer (%(default)s)")

    test = commands.add_parser("selftest", help="attack a reward plug-in; exit 1 if it pays for what it must not")
    test.set_defaults(run=_selftest)
    test.add_argument("reward", help="path/to/file.py:function, module:function, a reward's name, or math (built in)")
    test.add_argument("--marker", choices=MARKERS, default="boxed", help="how its answers are marked (%(default)s)")
    test.add_argument("--gold", default="answer", metavar="COLUMN", help="column of the reference (%(default)s)")
    test.add_argument("--shaping", action="store_true", help="it is not for right answers: only errors, hangs and code")
    test.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="set a parameter; may repeat")
    test.add_argument(
        "--timeout", type=_positive(float), default=10.0, help="seconds one completion may take (%(default)s)"
    )
    return parser


def _add_verifier_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--marker", choices=MARKERS, default="boxed", help="how completions mark answers (%(default)s)")
    parser.add_argument(
        "--timeout", type=_positive(float), default=1.0, help="processor seconds one hard answer may take (%(default)s)"
    )


def _positive(kind: type[int] | type[float]) -> Any:
    def number(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be more than 0")
        return value

    number.__name__ = kind.__name__  # argparse's message names the type
    return number


def _score(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        verifier = stack.enter_context(Verifier(args.timeout, args.workers, args.marker))
        out = stack.enter_context(_create(args.out)) if args.out else None
        verdicts = []
        for row in score_file(args.file, Fields(args.completion, args.gold, args.question), verifier):
            verdicts.append(row.verdict)
            if out is not None:
                print(row.as_json(), file=out)
    print(summary(verdicts))
    return 0


def _create(path: Path) -> Any:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --out {str(path)!r}: {error.strerror}") from error


def _explain(args: argparse.Namespace) -> int:
    completion = sys.stdin.read() if args.completion == "-" else args.completion
    marker = "boxed" if args.bare else args.marker
    with Verifier(args.timeout, marker=marker) as verifier:
        completion = rf"\boxed{{{completion}}}" if args.bare else completion
        steps = explain(completion, args.gold, verifier, args.question)
    for title, text in steps:
        print(f"{title:13}" + text.replace("\n", "\n" + " " * 13))
    return 0


def _golds(args: argparse.Namespace) -> int:
    checked, bad = 0, 0
    with Verifier() as verifier:
        for number, row in read_rows(args.file):
            gold = text_field(row, args.gold, f"{args.file}:{number}", "--gold")
            checked += 1
            if (reason := verifier.check_gold(gold)) is not None:
                bad += 1
                print(f"{args.file}:{number}: {gold!r}: {reason}")
    if not checked:
        raise InputError(f"{args.file} holds no row")
    print(f"{bad} of {checked} reference answers cannot be parsed")
    return 1 if bad else 0


def _selftest(args: argparse.Namespace) -> int:
    subject = Subject(args.reward, args.marker, args.gold, dict(map(_argument, args.arg)), args.shaping)
    checks, failed = 0, []
    for finding in run_selftest(subject, args.timeout):
        checks += 1
        if finding.problem:
            failed.append(finding.check)
        print(f"{'FAILED' if finding.problem else 'ok':8}{finding.check}", flush=True)
        if finding.problem:
            print(f"        {finding.problem}", flush=True)
    print(f"{len(failed)} of {checks} checks failed{': ' + '; '.join(failed) if failed else ''}")
    return 1 if failed else 0


def _argument(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, the value as JSON where it is JSON, else as text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InputError(f"--arg {text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
