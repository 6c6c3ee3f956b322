"""The math verifier against math-verify: right and wrong answers accepted, and verdicts per second on one core.

    python benchmarks/verifier.py --cases CASES --problems DATA --peer-path PEER --out results.json
    python benchmarks/verifier.py --cases CASES --only-ours --misses misses.jsonl

CASES is a folder of labelled pairs, DATA one of problem files; without DATA nothing is timed. math-verify is installed
into a folder of its own: pip install --target PEER "math-verify[antlr4_13_2]==0.9.0"
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe
from verifier_cases import Case, Rates, group, load_cases
from verifier_sides import PEER, PEER_INSTALL, Peer, judge_ours, judge_peer, peer_versions
from verifier_speed import measure, print_speed
from verifier_workload import make_workloads

from deltarl.reward.score_file import verdict_values
from deltarl.reward.verdict import Verdict

PARSER_TESTS = "latex2sympy_tests"
"""A parser's own tests, most of the rows and not what models answer: the last line of the table leaves them out."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="folder of labelled pairs, *.jsonl")
    parser.add_argument("--problems", type=Path, help="folder of problem files; times completions made from them")
    parser.add_argument("--peer-path", type=Path, help="folder that math-verify was installed into")
    parser.add_argument("--only-ours", action="store_true", help="leave the peer out")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each side (default %(default)s)")
    parser.add_argument("--misses", type=Path, help="write our wrong verdicts here, one JSON object a line")
    parser.add_argument("--out", type=Path, help="write all results and the machine's description as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cases = load_cases(args.cases)
    peer_path = None if args.only_ours else args.peer_path
    versions = peer_versions(peer_path)
    if not versions:
        peer_path = None
        install = PEER_INSTALL.format(path=args.peer_path or "PEER")
        print("math-verify is left out" if args.only_ours else f"math-verify is ABSENT: {install}, then --peer-path")

    verdicts = judge_ours(cases)
    sides = {"deltarl": [verdict.score == 1.0 for verdict in verdicts]}
    if peer_path is not None:
        with Peer(peer_path) as peer:
            sides[PEER] = judge_peer(peer, cases)
    if args.misses:
        count = write_misses(args.misses, cases, verdicts, sides)
        print(f"{count} wrong verdicts of {len(cases)} written to {args.misses}")

    scored = group(cases, lambda case: None if case.set_aside else case.file)
    scored |= {
        "all": [index for indices in scored.values() for index in indices],
        f"all but {PARSER_TESTS}": [i for name, indices in scored.items() if name != PARSER_TESTS for i in indices],
    }
    aside = group(cases, lambda case: case.set_aside and f"{case.file}, {case.set_aside}")
    results = describe(["sympy"]) | {
        "peer": versions,
        "scored": print_rates("Scored rows", cases, sides, scored),
        "set_aside": print_rates("Rows set aside for a debatable label", cases, sides, aside),
    }
    if args.problems:
        results["speed"] = measure(make_workloads(args.problems, cases), peer_path, args.rounds)
        print_speed(results["speed"])
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def write_misses(path: Path, cases: Sequence[Case], verdicts: Sequence[Verdict], sides: dict[str, list[bool]]) -> int:
    """Write every case that we judge otherwise than labelled; returns how many."""
    misses = []
    for index, (case, verdict) in enumerate(zip(cases, verdicts, strict=True)):
        if sides["deltarl"][index] != case.expected:
            miss = {"file": case.file, **case.row, "set_aside": case.set_aside, "ours": verdict_values(verdict)}
            misses.append(miss | ({"peer_accepts": sides[PEER][index]} if PEER in sides else {}))
    path.write_text("".join(json.dumps(miss, ensure_ascii=False) + "\n" for miss in misses), encoding="utf-8")
    return len(misses)


def print_rates(
    title: str, cases: Sequence[Case], sides: dict[str, list[bool]], groups: dict[str, list[int]]
) -> dict[str, Any]:
    """Print a table with a line for each group of rows; returns its counts."""
    print(f"\n{title}\n")
    print("| rows | right | wrong | " + " | ".join(f"{side} TPR | {side} FPR" for side in sides) + " |")
    print("|---" * (3 + 2 * len(sides)) + "|")
    table = {}
    for name, indices in groups.items():
        rates = {side: Rates.of(cases, accepted, indices) for side, accepted in sides.items()}
        first = next(iter(rates.values()))
        print(f"| {name} | {first.right} | {first.wrong} | " + " | ".join(map(str, rates.values())) + " |")
        table[name] = {side: dataclasses.asdict(rate) for side, rate in rates.items()}
    return table


if __name__ == "__main__":
    main()
