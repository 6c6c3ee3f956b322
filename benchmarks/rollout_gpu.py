"""Sampling on a GPU: a hybrid of 1.37B parameters beside an all-attention baseline of the same size.

PYTHONPATH=. python benchmarks/rollout_gpu.py --out rollout_gpu.json [--only context,batch,mode,transformers]

context: time of a decode step (a CUDA graph, without sampling) by context length, for one sequence and for as many as
fit the memory; random weights, random cache, every row of that length. "floor" is the time to read weights and latents
and to read (and once in 16 steps write) states, at the bandwidth of a copy measured in the same run.
batch: tokens a second of the engine with its sampling, by batch, for prompts of 128 tokens and answers of 256.
mode: the same in batch-invariant mode, and the largest difference of the log-probs to a learner's, in both modes.
transformers: tokens a second of transformers' `generate` for the same prompts, answers of 64.

A file that is there is gone on with.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from kernels_measure import copy_bandwidth
from torch import Tensor

from deltarl.kernels.batch_invariant import set_batch_invariant
from deltarl.model.cache import PAGE_SIZE
from deltarl.model.config import hybrid_config, layer_kinds
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

DEVICE = torch.device("cuda")
VOCAB, PROMPT, ANSWER, GROUP = 32768, 128, 256, 8
CONTEXTS = (4096, 32768, 131072, 524288, 1048576)
BATCHES = (1, 8, 64, 256, 512, 1024)
SECTIONS = ("context", "batch", "mode", "transformers")
# Layers per full-attention layer, and the width of the feed-forward layers that makes the sizes equal.
MODELS = {"hybrid": (4, 5632), "attention": (1, 6144)}
SPARE = 12 << 30  # left free beside weights and cache
Record = dict[str, Any]


def make_model(name: str) -> HybridForCausalLM:
    """bf16, random weights."""
    every, inner = MODELS[name]
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=VOCAB, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, linear_num_heads=16,
        linear_head_dim=128, intermediate_size=inner, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, max_position_embeddings=1 << 21, full_attention_every=every,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with DEVICE:
            return HybridForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@torch.inference_mode()
def context(model: HybridForCausalLM, length: int, batch: int | None) -> Record:
    """A decode step of `batch` rows of `length` tokens each; as many as fit if None."""
    probe = model.new_cache(1, PAGE_SIZE)
    each = probe.bytes_per_sequence(length + PAGE_SIZE)
    recurrent = probe.bytes_per_sequence(0)
    most = (torch.cuda.mem_get_info()[0] - SPARE) // each
    batch = min(int(most), 1024) if batch is None else batch
    if batch < 1 or batch > most:
        return {"batch": batch, "refused": f"{each} bytes a sequence"}
    cache = model.new_cache(batch, length + PAGE_SIZE)
    for layer in cache.layers:
        if isinstance(layer, Tensor):
            layer.normal_(std=0.1)
        else:
            layer.delta.state.normal_(std=0.1)
    cache.length.fill_(length)
    ids = torch.randint(VOCAB, (batch,), device=DEVICE)
    model.decode(ids, cache, length + 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.decode(ids, cache, length + 1)
    seconds = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    weights = sum(p.nbytes for n, p in model.named_parameters() if "embed_tokens" not in n)
    moved = weights + batch * (recurrent * 17 / 16 + each - recurrent)
    return {"batch": batch, "ms": 1e3 * sorted(seconds)[6], "bytes_per_sequence": each, "bytes_moved": int(moved)}


def prompts(count: int) -> list[list[int]]:
    gen = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB, (count, PROMPT), generator=gen).tolist()


def batch(model: HybridForCausalLM, rows: int) -> Record:
    """Tokens a second where all `rows` samples start and end together, prefill included; graphs are captured before."""
    engine = Engine(model, max_num_seqs=rows, max_model_len=PROMPT + ANSWER + 1, max_prefill_tokens=16384)
    params = SamplingParams(n=min(rows, GROUP), max_tokens=ANSWER, seed=1)
    asked = prompts(-(-rows // GROUP))
    engine.generate(asked, params)
    torch.cuda.synchronize()
    start = time.perf_counter()
    outputs = engine.generate(asked, params)
    seconds = time.perf_counter() - start
    tokens = sum(len(o.token_ids) for request in outputs for o in request.outputs)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}


@torch.no_grad()
def mode(model: HybridForCausalLM, rows: int, invariant: bool) -> Record:
    """`batch` in one of the modes, and the sampler's log-probs beside a learner's."""
    set_batch_invariant(invariant)
    try:
        record = batch(model, rows)
        engine = Engine(model, max_num_seqs=rows, max_model_len=PROMPT + ANSWER + 1, max_prefill_tokens=16384)
        outputs = engine.generate(prompts(8), SamplingParams(n=4, max_tokens=ANSWER, seed=1))
        sequences = [(r.prompt_token_ids, o) for r in outputs for o in r.outputs]
        ids = torch.tensor([t for prompt, o in sequences for t in [*prompt, *o.token_ids]], device=DEVICE)
        size = PROMPT + ANSWER
        bounds = torch.arange(0, len(ids) + 1, size, device=DEVICE)
        predictor = torch.cat([torch.arange(PROMPT - 1, size - 1) + i * size for i in range(len(sequences))])
        chosen = torch.tensor([[t for _, o in sequences for t in o.token_ids]], device=DEVICE)
        start = time.perf_counter()
        got = model(ids[None], cu_seqlens=bounds, logits_to_keep=predictor.to(DEVICE), logprobs_of=chosen).logprobs
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        gap = got[0].double() - torch.tensor([p for _, o in sequences for p in o.logprobs], device=DEVICE).double()
        record |= {"logprob_abs_max": float(gap.abs().max()), "k3": float((gap.exp() - 1 - gap).mean())}
        return record | {"scoring_tokens_per_s": len(ids) / seconds}
    finally:
        set_batch_invariant(False)


def transformers(model: HybridForCausalLM, rows: int) -> Record:
    """transformers' own class of the hybrid with the same weights; with flash-linear-attention if it is installed."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_flash_linear_attention_available

    peer = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).to(DEVICE).eval()
    ids = torch.tensor([p for p in prompts(-(-rows // GROUP)) for _ in range(min(rows, GROUP))], device=DEVICE)
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": True, "pad_token_id": 0}
    with torch.no_grad():
        peer.generate(ids, **(options | {"max_new_tokens": 8, "min_new_tokens": 8}))
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = peer.generate(ids, **options)
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    tokens = (out.shape[1] - PROMPT) * len(out)
    fla = bool(is_flash_linear_attention_available())
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "fla": fla}


def measurements(name: str, model: HybridForCausalLM, sections: list[str]) -> Iterator[tuple[str, Any]]:
    """Key and function of everything to be measured of a model."""
    if "context" in sections:
        for length in CONTEXTS:
            for rows in (1, None):
                yield f"context {name} {length} {rows or 'most'}", lambda n=length, b=rows: context(model, n, b)
    if "batch" in sections:
        for rows in BATCHES:
            yield f"batch {name} {rows}", lambda b=rows: batch(model, b)
    if "mode" in sections:
        for rows in (64, 256):
            for on in (False, True):
                key = f"mode {name} {rows} {'invariant' if on else 'plain'}"
                yield key, lambda b=rows, on=on: mode(model, b, on)
    if "transformers" in sections and name == "hybrid":
        for rows in (8, 64):
            yield f"transformers {name} {rows}", lambda b=rows: transformers(model, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(SECTIONS))
    args = parser.parse_args()
    results: Record = json.loads(args.out.read_text()) if args.out.exists() else {}
    results["device"] = f"{torch.cuda.get_device_name()}, {platform.python_version()}"
    results["versions"] = {"torch": torch.__version__, "triton": triton.__version__}
    results["copy_bandwidth"] = copy_bandwidth(DEVICE)
    for name in MODELS:
        model = make_model(name)
        results[f"parameters {name}"] = sum(p.numel() for p in model.parameters())
        results[f"attention layers {name}"] = layer_kinds(model.config).count("full_attention")
        for key, measure in measurements(name, model, args.only):
            if key in results:
                continue
            try:
                results[key] = measure()
            except torch.cuda.OutOfMemoryError as error:
                results[key] = {"failed": str(error)[:200]}
            print(key, {k: round(v, 5) if isinstance(v, float) else v for k, v in results[key].items()}, flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            free()
        del model
        free()


if __name__ == "__main__":
    main()
