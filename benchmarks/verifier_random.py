"""The math verifier on random pairs that are equal, or differ, by construction.

    python benchmarks/verifier_random.py --count 20000 --seed 1 --misses misses.jsonl

Ends with status 1 where a wrong answer is accepted, or fewer right ones than the project asks for.
"""

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import product
from pathlib import Path

from verifier_cases import boxed
from verifier_pairs import KINDS, random_pairs

from deltarl.reward.verifier import Verifier

RECALL = 0.995
"""The least share of right answers to accept; of wrong ones, none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="pairs, half of them right (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--misses", type=Path, help="write pairs judged otherwise than made here, one a line")
    args = parser.parse_args()

    pairs = random_pairs(args.count, args.seed)
    with Verifier() as verifier:
        verdicts = verifier.score([boxed(pair.pred, "answer") for pair in pairs], [pair.gold for pair in pairs])
    counts: defaultdict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    misses = []
    for pair, verdict in zip(pairs, verdicts, strict=True):
        for kind in (pair.kind, "all"):
            counts[kind][pair.right, verdict.correct] += 1
        if verdict.correct != pair.right:
            misses.append({**asdict(pair), "verdict": verdict.kind, "detail": verdict.detail})
    if args.misses:
        args.misses.write_text("".join(json.dumps(miss, ensure_ascii=False) + "\n" for miss in misses), "utf-8")

    print("| kind | right | accepted | wrong | accepted |\n|---|---|---|---|---|")
    for kind in [*KINDS, "all"]:
        hits, lost, fooled, refused = (counts[kind][key] for key in product((True, False), (True, False)))
        print(f"| {kind} | {hits + lost} | {_recall(hits, lost)} | {fooled + refused} | {fooled} |")
    if fooled or hits < RECALL * (hits + lost):
        raise SystemExit(f"FAILED: {hits / (hits + lost):.2%} of right answers and {fooled} wrong ones are accepted")


def _recall(hits: int, lost: int) -> str:
    return f"{hits / (hits + lost):.2%}" if hits + lost else "-"


if __name__ == "__main__":
    main()
