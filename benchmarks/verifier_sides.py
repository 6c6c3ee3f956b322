"""The two sides of `verifier.py`: our verifier in this process, math-verify in one of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Self

from verifier_cases import RESPONSE_MARKER, Case, bare_gold, boxed

from deltarl.reward.verdict import Verdict
from deltarl.reward.verifier import Verifier

PEER = "math-verify"
PEER_INSTALL = 'pip install --target {path} "math-verify[antlr4_13_2]==0.9.0"'


def judge_ours(cases: Sequence[Case]) -> list[Verdict]:
    """Our verdict on each case: the first of its golds that is met, else that on its last gold."""
    with Verifier() as boxes, Verifier(marker=RESPONSE_MARKER) as responses:
        return [_judge(responses if case.row["pred_is"] == "response" else boxes, case) for case in cases]


def _judge(verifier: Verifier, case: Case) -> Verdict:
    completion = boxed(case.row["pred"], case.row["pred_is"])
    verdicts = [verifier.score([completion], [bare_gold(gold, case.row["gold_is"])])[0] for gold in case.golds]
    return next((verdict for verdict in verdicts if verdict.score == 1.0), verdicts[-1])


def judge_peer(peer: "Peer", cases: Sequence[Case]) -> list[bool]:
    """Whether the peer accepts each case under any of its golds."""
    return [
        any(
            peer.judge(boxed(gold, case.row["gold_is"]), boxed(case.row["pred"], case.row["pred_is"]))[0]
            for gold in case.golds
        )
        for case in cases
    ]


def peer_versions(path: Path | None) -> dict[str, str]:
    """Versions of math-verify and its parser in ``path``; empty if it is not there."""
    found = {} if path is None else {d.metadata["Name"].lower(): d.version for d in distributions(path=[str(path)])}
    names = (PEER, "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
    return {name: found[name] for name in names if name in found} if PEER in found else {}


class Peer:
    """math-verify in a process of its own. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        program = Path(__file__).with_name("verifier_peer.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), str(path.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def judge(self, gold: str, pred: str) -> tuple[bool, float]:
        """Whether ``pred`` is accepted, and the seconds it took inside the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([gold, pred]), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise SystemExit(f"{PEER} died (its message is above) on gold {gold!r}, answer {pred[-200:]!r}")
        accepted, seconds = json.loads(reply)
        return accepted, seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
