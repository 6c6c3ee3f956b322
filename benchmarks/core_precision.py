"""What the fp64 core on a CPU costs, and what it buys: `deltarl.kernels.precision.core_dtype` as shipped and as fp32.

python benchmarks/core_precision.py

Times one `Engine.generate` and one forward and backward pass over its answers with the quickstart's model, in turns,
on one thread, in CPU seconds, and compares the log-probabilities of the sampler and the learner.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from deltarl.kernels.precision import core_dtype
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.batch import PackedBatch, TrainSample
from deltarl.rl.cli import load_config
from deltarl.rl.data import encode_prompts, from_problems
from deltarl.rl.problems import generate
from deltarl.rl.warm_start import load_tokenizer, new_model
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
DTYPES = {"fp64, as shipped": torch.float64, "fp32": torch.float32}


@dataclass(frozen=True)
class Turn:
    """CPU seconds, and |log-probability of the sampler − of the learner| per token."""

    sampling: float
    training: float
    mismatch: torch.Tensor


@contextmanager
def core_in(dtype: torch.dtype) -> Iterator[None]:
    """Replaces `core_dtype` in every module that imported it."""
    users = [m for name, m in sys.modules.items() if name.startswith("deltarl.") and hasattr(m, "core_dtype")]
    for module in users:
        module.core_dtype = lambda *unused: dtype  # type: ignore[attr-defined]  # ModuleType declares no names
    try:
        yield
    finally:
        for module in users:
            module.core_dtype = core_dtype  # type: ignore[attr-defined]  # as above


def measure(model: HybridForCausalLM, prompts: list[list[int]], params: SamplingParams) -> Turn:
    """Samples answers to all prompts, then runs forward and backward over them as the learner does."""
    start = time.process_time()
    groups = Engine(model).generate(prompts, params)
    sampling = time.process_time() - start
    samples = [TrainSample.whole(g.prompt_token_ids, t.token_ids, t.logprobs, 1.0) for g in groups for t in g.outputs]
    batch = PackedBatch.pack(samples, torch.device("cpu"))
    model.zero_grad()
    start = time.process_time()
    logits = model(
        input_ids=batch.input_ids.unsqueeze(0), cu_seqlens=batch.cu_seqlens, logits_to_keep=batch.predictor
    ).logits.squeeze(0)
    logprobs = torch.log_softmax(logits, -1).gather(-1, batch.target.unsqueeze(-1)).squeeze(-1)
    logprobs.mean().backward()
    training = time.process_time() - start
    return Turn(sampling, training, (logprobs.detach() - batch.old_logprobs).abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds are seconds then, whatever else the machine does
    config = load_config(RECIPE)
    tokenizer = load_tokenizer(config.model)
    model = new_model(config.model, len(tokenizer), config.seed)
    examples = from_problems(generate(config.data.train.problems or [], "train", args.prompts, config.seed))
    encoded = encode_prompts(
        examples, tokenizer, template=None, system_prompt=None, max_prompt_tokens=64, on_long="error"
    )
    params = SamplingParams(n=args.generations, max_tokens=config.rollout.max_tokens)
    turns: dict[str, list[Turn]] = {name: [] for name in DTYPES}
    for _ in range(args.rounds + 1):
        for name, dtype in DTYPES.items():
            with core_in(dtype):
                turns[name].append(measure(model, [p.token_ids for p in encoded], params))
    print(table({name: runs[1:] for name, runs in turns.items()}))


def table(turns: dict[str, list[Turn]]) -> str:
    """Medians over the rounds as Markdown."""
    lines = [
        "| core | sampling CPU s | forward and backward CPU s | max abs(Δ logprob) | mean abs(Δ logprob) |",
        "|---|---|---|---|---|",
    ]
    seconds = {}
    for name, runs in turns.items():
        seconds[name] = (statistics.median(t.sampling for t in runs), statistics.median(t.training for t in runs))
        mismatch = torch.cat([t.mismatch for t in runs])
        lines.append(
            f"| {name} | {seconds[name][0]:.3f} | {seconds[name][1]:.3f} "
            f"| {mismatch.max():.1e} | {mismatch.mean():.1e} |"
        )
    sampling, training = (a / b for a, b in zip(*seconds.values(), strict=True))
    lines.append(f"| fp64 / fp32 | {sampling:.2f} | {training:.2f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
