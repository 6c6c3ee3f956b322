"""One side of `rollout.py`: prints what it measured as a line of JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rollout_workload import VOCAB, Workload, make_model, save

ROWS = 16
STEPS = 24


def deltarl(folder: Path, work: Workload, batch: int, alone: bool = False) -> float:
    from deltarl.model.checkpoint import load_model
    from deltarl.rollout.engine import Engine
    from deltarl.rollout.params import SamplingParams

    engine = Engine(load_model(folder), max_num_seqs=batch, max_model_len=512)
    n = 1 if alone else work.samples
    repeat = work.samples // n
    prompts = [p for p in work.prompts for _ in range(repeat)]
    params = [SamplingParams(n=n, max_tokens=m, seed=i) for i, m in enumerate(work.limits) for _ in range(repeat)]
    engine.generate(prompts[:2], params[:2])
    start = time.process_time()
    outputs = engine.generate(prompts, params)
    seconds = time.process_time() - start
    assert sum(len(o.token_ids) for r in outputs for o in r.outputs) == work.tokens
    return seconds


def transformers(folder: Path, work: Workload, batch: int) -> float:
    import torch
    from transformers import KimiLinearForCausalLM, logging

    logging.set_verbosity_error()
    model = KimiLinearForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    rows = [(p, m) for p, m in zip(work.prompts, work.limits, strict=True) for _ in range(work.samples)]
    seconds = 0.0
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        width = max(len(p) for p, _ in some)
        ids = torch.tensor([[0] * (width - len(p)) + p for p, _ in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in some])
        start = time.process_time()
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max(m for _, m in some))
        seconds += time.process_time() - start
    return seconds


def vllm(folder: Path, work: Workload, batch: int) -> float:
    import os

    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams

    from deltarl.rollout.vllm import plugin

    plugin.register()  # also where deltarl is not installed and has no entry point
    llm = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=batch,
        max_model_len=512,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    prompts = [{"prompt_token_ids": p} for p in work.prompts]
    params = [
        SamplingParams(n=work.samples, max_tokens=m, seed=i, ignore_eos=True, logprobs=0, detokenize=False)
        for i, m in enumerate(work.limits)
    ]
    llm.generate(prompts[:2], params[:2], use_tqdm=False)
    start = time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.process_time() - start
    assert sum(len(o.token_ids) for r in outputs for o in r.outputs) == work.tokens
    return seconds


def contexts(lengths: list[int]) -> dict[str, list[float]]:
    """Milliseconds of processor time to decode a token of each of `ROWS` rows, by the length that they have."""
    import torch

    result = {}
    kinds = {"KDA layers alone": 10**9, "hybrid, a layer in four with attention": 4, "attention alone": 1}
    for name, every in kinds.items():
        model = make_model("1M", every, max(lengths) + 2 * STEPS)
        cache = model.new_cache(ROWS, max(lengths) + 2 * STEPS)
        tokens = torch.randint(3, VOCAB, (ROWS,))
        result[name] = []
        for length in lengths:  # what was decoded so far does not matter for the time
            cache.length.fill_(length - length % 16)
            times = []
            with torch.inference_mode():
                for step in range(STEPS):
                    start = time.process_time()
                    model.decode(tokens, cache, longest=length + step)
                    times.append(time.process_time() - start)
            result[name].append(1e3 * sorted(times)[STEPS // 2])
    return result


def main() -> None:
    side, size, folder, options = sys.argv[1], sys.argv[2], Path(sys.argv[3]) / sys.argv[2], json.loads(sys.argv[4])
    work = Workload.random(options["prompts"], options["samples"])
    figures: Any
    if side == "save":
        figures = save(size, folder)
    elif side == "contexts":
        figures = contexts(options["contexts"])
    else:
        run = {
            "deltarl": deltarl,
            "deltarl-alone": lambda *x: deltarl(*x, alone=True),
            "transformers": transformers,
            "vllm": vllm,
        }[side]
        figures = {"tokens": work.tokens, "seconds": run(folder, work, options["batch"])}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
