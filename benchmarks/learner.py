"""One update of deltarl's learner against one of TRL's GRPOTrainer, on the same answers: tokens a second, memory.

    python benchmarks/learner.py --out learner.json                                           # on a CPU
    PYTHONPATH=. python benchmarks/learner.py --device cuda --size 370M --out learner.json    # on a GPU; install fla

Both sides get the same hybrid with the same random weights, the same answers of mixed length, rewards, clipping and
AdamW settings, one optimizer step on the whole batch. The gradient norms of the first step must agree. Each side runs
in a process of its own, in turns. `README.md` says how to read the table.
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
from learner_workload import SIZES, Answers, Measured, make_model
from machine import describe

LABELS = {"trl": "TRL", "trl-chunk16": "TRL, its chunkwise KDA replaced", "deltarl": "deltarl"}
TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}  # of gradient norms; a GPU computes in bf16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="1M", help="parameters (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a turn (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default %(default)s)")
    parser.add_argument("--generations", type=int, default=8, help="answers to a prompt (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer (default %(default)s)")
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", default=[16], help="answers of a pass of TRL; each is run"
    )
    parser.add_argument(
        "--micro-tokens", type=int, nargs="+", default=[8192], help="tokens of a pass of ours, likewise"
    )
    parser.add_argument("--sides", nargs="+", choices=LABELS, default=list(LABELS), help="default: all")
    parser.add_argument("--out", type=Path, help="write every step's times and the machine's description as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    found: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_model(args.size, folder, torch.bfloat16 if args.device == "cuda" else torch.float32)
        shape = (args.size, args.prompts, args.generations, args.max_tokens, args.steps)
        for turn in range(args.rounds):
            for side in args.sides:
                for micro_batch in args.micro_tokens if side == "deltarl" else args.micro_batch:
                    Answers(*shape, micro_batch, args.device).save(folder)
                    key = f"{side} {micro_batch}"
                    print(f"round {turn + 1} of {args.rounds}: {key}", file=sys.stderr, flush=True)
                    found.setdefault(key, []).append(run_side(side, folder, args.threads, args.device))
        tokens = Answers.load(folder).tokens
    rate = None
    if args.device == "cuda":
        from kernels_measure import matmul_rate

        rate = matmul_rate(torch.device("cuda"))
    check(found, TOLERANCE[args.device])
    print("\n".join(table(found, tokens, parameters, rate)))
    if args.out:
        arguments = {name: value for name, value in vars(args).items() if name != "out"}
        report = describe(["torch", "transformers", "trl"]) | {"arguments": arguments}
        report |= {"tokens": tokens, "parameters": parameters, "matmul_flops": rate}
        report["sides"] = {key: [asdict(m) for m in turns] for key, turns in found.items()}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def run_side(side: str, folder: Path, threads: int, device: str) -> Measured:
    """One turn of a side in a fresh process."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    env |= {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"} if device == "cpu" else {}
    script = Path(__file__).with_name("learner_sides.py")
    done = subprocess.run([sys.executable, script, side, folder], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    return Measured(**json.loads((folder / "measured.json").read_text()))


def table(found: dict[str, list[Measured]], tokens: int, parameters: int, matmul_flops: float | None) -> list[str]:
    """A line for each side. MFU counts 6 operations a parameter and token, and nothing of the token mixers' own."""
    lines = [
        f"{tokens:,} tokens a step, {parameters:,} parameters without the embedding",
        "",
        "| side (of a pass: answers, tokens) | update s (range) | tokens/s | CPU s | peak MiB | MFU | slower by |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = min((_seconds(turns) for key, turns in found.items() if key.startswith("deltarl")), default=None)
    for key, turns in found.items():
        side, _, micro_batch = key.partition(" ")
        seconds, every = _seconds(turns), [s for m in turns for s in m.seconds]
        cpu = statistics.median(m.cpu_seconds / len(m.seconds) for m in turns)
        mfu = f"{6 * parameters * tokens / seconds / matmul_flops:.0%}" if matmul_flops else "-"
        ratio = f"{seconds / ours:.1f}x" if ours else "-"
        span = f"{min(every):.3f}-{max(every):.3f}"
        peak = max(m.peak_bytes for m in turns) / 2**20
        lines.append(
            f"| {LABELS[side]} ({micro_batch}) | {seconds:.3f} ({span}) | {tokens / seconds:,.0f} | {cpu:.2f} "
            f"| {peak:,.0f} | {mfu} | {ratio} |"
        )
    return lines


def check(found: dict[str, list[Measured]], tolerance: float) -> None:
    """Raises ValueError where the sides did not compute the same gradient."""
    norms = {key: turns[0].grad_norm for key, turns in found.items()}
    if max(norms.values()) - min(norms.values()) > tolerance * max(norms.values()):
        raise ValueError(f"the sides' gradients have other norms: {norms}")


def _seconds(turns: list[Measured]) -> float:
    return statistics.median(s for m in turns for s in m.seconds)


if __name__ == "__main__":
    main()
