"""A GRPO step of deltarl against the same step of TRL's GRPOTrainer over transformers, on a CPU.

python benchmarks/vs_trl.py [--threads 1] [--out benchmarks/results/vs_trl.json]

Both sides get the same hybrid model with the same random weights, the same prompts, batch, reward and optimizer
settings, and the same number of threads. Each runs in a process of its own, one after the other and in turns, so that
whatever else the machine does falls on all of them. `README.md` says how to read the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import vs_trl_chunk16
from machine import describe
from transformers import KimiLinearForCausalLM, logging
from vs_trl_workload import StepTime, Workload, make_model

from deltarl.model.checkpoint import load_model

LABELS = {
    "trl": "TRL, stock",
    "trl-chunk16": "TRL, its chunkwise KDA replaced",
    "deltarl": "deltarl",
}
TOLERANCE = 1e-4
PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each side (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a turn (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default %(default)s)")
    parser.add_argument("--generations", type=int, default=8, help="answers to a prompt (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens of every answer (default %(default)s)")
    parser.add_argument("--sides", nargs="+", choices=LABELS, default=list(LABELS), help="default: all")
    parser.add_argument("--out", type=Path, help="write every step's times and the machine's description as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.set_verbosity_error()  # or stock transformers warns of the slow code that is measured here
    logging.disable_progress_bar()
    work = Workload(args.prompts, args.generations, args.max_tokens, args.steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.save(folder)
        make_model(folder, work.seed)
        differences = check_equal(folder)
        times: dict[str, list[StepTime]] = {side: [] for side in args.sides}
        for turn in range(args.rounds):
            for side in args.sides:
                print(f"round {turn + 1} of {args.rounds}: {LABELS[side]}", file=sys.stderr)
                times[side] += run_side(side, folder, args.threads)
    print(markdown(times, work, args.threads))
    if args.out:
        report = describe(PACKAGES) | {
            "load_average": os.getloadavg()[0],
            "threads": args.threads,
            "workload": asdict(work),
            "max_logit_difference": differences,
            "sides": {side: [asdict(t) for t in steps] for side, steps in times.items()},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


@torch.no_grad()
def check_equal(folder: Path) -> dict[str, float]:
    """Largest logit difference to stock transformers, of deltarl's model and of the replaced KDA (with cache too).

    Raises:
        ValueError: one is above `TOLERANCE`: the sides would not compute the same thing.
    """
    ids = torch.randint(3, 200, (4, 80), generator=torch.Generator().manual_seed(0))
    stock_model = KimiLinearForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stock = stock_model(ids).logits
    found = {"deltarl": _largest(load_model(folder).eval()(ids).logits - stock)}
    vs_trl_chunk16.install()
    found["trl-chunk16"] = _largest(stock_model(ids).logits - stock)
    prefilled = stock_model(ids[:, :40], use_cache=True)
    rest = [stock_model(ids[:, i : i + 1], past_key_values=prefilled.past_key_values).logits for i in range(40, 48)]
    found["trl-chunk16, cached"] = _largest(torch.cat([prefilled.logits, *rest], 1) - stock[:, :48])
    if max(found.values()) >= TOLERANCE:
        raise ValueError(f"logits differ from stock transformers by {found}; at most {TOLERANCE} is rounding")
    return found


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def run_side(side: str, folder: Path, threads: int) -> list[StepTime]:
    """One turn of a side in a fresh process; the times of its measured steps."""
    env = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TORCHDYNAMO_DISABLE": "1",  # TRL's helpers would compile for seconds, and do not gain it back
        "TOKENIZERS_PARALLELISM": "false",  # or tokenizers start threads of their own
    }
    script = Path(__file__).with_name("vs_trl_sides.py")
    done = subprocess.run([sys.executable, script, side, folder], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    return [StepTime(**t) for t in json.loads((folder / "times.json").read_text())]


def markdown(times: dict[str, list[StepTime]], work: Workload, threads: int) -> str:
    """The table of medians, and under it how many times faster deltarl is than each other side."""
    lines = [
        f"{work.prompts} prompts x {work.generations} answers x {work.max_tokens} tokens, {threads} thread(s), "
        f"median of {len(next(iter(times.values())))} steps (fastest-slowest)",
        "",
        "| | sampled tokens/s | update s | step s | step CPU s |",
        "|---|---|---|---|---|",
    ]
    for side, steps in times.items():
        span = f"{min(t.step for t in steps):.2f}-{max(t.step for t in steps):.2f}"
        rate, update, step, cpu = _medians(steps)
        lines.append(f"| {LABELS[side]} | {rate:,.0f} | {update:.2f} | {step:.2f} ({span}) | {cpu:.2f} |")
    for side, steps in times.items():
        if side != "deltarl" and "deltarl" in times:
            (rate, *ours), (other_rate, *others) = _medians(times["deltarl"]), _medians(steps)
            ratios = [rate / other_rate, *(b / a for a, b in zip(ours, others, strict=True))]
            lines.append(f"| {LABELS[side]}: deltarl is faster by | " + " | ".join(f"{r:.1f}x" for r in ratios) + " |")
    return "\n".join(lines)


def _medians(steps: list[StepTime]) -> tuple[float, float, float, float]:
    """Sampled tokens per second; seconds of update and step; CPU seconds of the step."""
    return (
        statistics.median(t.tokens_per_second for t in steps),
        statistics.median(t.update for t in steps),
        statistics.median(t.step for t in steps),
        statistics.median(t.cpu for t in steps),
    )


if __name__ == "__main__":
    main()
