"""Sampling with our engine against transformers' `generate`, vLLM, and our engine without the fork, on a CPU.

python benchmarks/rollout.py [--sizes 1M 10M] [--threads 1] [--out benchmarks/results/rollout.json]

Every side samples the same number of answers of the same mixed lengths to the same prompts from the same random
weights, in a process of its own, in turns. Only tokens that were asked for count: `generate` goes on until the longest
answer of its batch is done. Figures are tokens per second of processor time, in which other work on the machine shows
less than in the time of day; the second table has the time of one token by the length of the context.

vLLM takes part if DELTARL_VLLM_PYTHON names a Python that has it (docs/VLLM.md).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES = {
    "deltarl": "deltarl",
    "deltarl-alone": "deltarl, every sample its own prompt",
    "transformers": "transformers generate",
    "vllm": "vLLM",
}
CONTEXTS = (128, 1024, 8192, 65536)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "10M"], choices=("1M", "10M"), help="default: both")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=8, help="answers to a prompt (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="sequences decoded at once (default %(default)s)")
    parser.add_argument("--contexts", nargs="*", type=int, default=CONTEXTS, help="of the second table; default: all")
    parser.add_argument("--out", type=Path, help="write all figures and the machine's description as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    python = dict.fromkeys(args.sides, sys.executable)
    if "vllm" in python:
        python["vllm"] = os.environ.get("DELTARL_VLLM_PYTHON", "")
        if not python["vllm"]:
            print("vLLM is left out: DELTARL_VLLM_PYTHON names no Python that has it")
            del python["vllm"]
    rates: dict[str, dict[str, list[float]]] = {}
    contexts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            side_process(sys.executable, "save", args, size, folder)
            rates[size] = {side: [] for side in python}
            for turn in range(args.rounds):
                for side, interpreter in python.items():
                    figures = side_process(interpreter, side, args, size, folder)
                    rates[size][side].append(figures["tokens"] / figures["seconds"])
                    print(f"{size} {SIDES[side]}, turn {turn + 1}: {rates[size][side][-1]:,.0f} tokens/s", flush=True)
        if args.contexts:
            contexts = side_process(sys.executable, "contexts", args, "1M", folder)
    report(rates, contexts, args.contexts)
    if args.out:
        packages = ("torch", "transformers", "numpy")
        machine = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        }
        result = {"machine": machine, "rates": rates, "contexts": list(args.contexts), "context_ms": contexts}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def side_process(python: str, side: str, args: argparse.Namespace, size: str, folder: str) -> Any:
    """What a side measured, run in a process of its own."""
    threads = str(args.threads)
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(HERE.parent)}
    work = {"prompts": args.prompts, "samples": args.samples, "batch": args.batch, "contexts": list(args.contexts)}
    command = [python, str(HERE / "rollout_sides.py"), side, size, folder, json.dumps(work)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(
    rates: dict[str, dict[str, list[float]]], contexts: dict[str, list[float]], lengths: tuple[int, ...]
) -> None:
    print("\n| model | side | tokens/s of processor time | deltarl is faster by |\n|---|---|---:|---:|")
    for size, sides in rates.items():
        middle = {side: statistics.median(values) for side, values in sides.items()}
        for side, rate in middle.items():
            ratio = f"{middle['deltarl'] / rate:.1f}x" if "deltarl" in middle else ""
            print(f"| {size} | {SIDES[side]} | {rate:,.0f} | {ratio} |")
    if contexts:
        print("\n| milliseconds a token, 16 rows, at context | " + " | ".join(f"{n:,}" for n in lengths) + " |")
        print("|---|" + "---:|" * len(lengths))
        for name, values in contexts.items():
            print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in values) + " |")


if __name__ == "__main__":
    main()
