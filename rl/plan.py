"""What a run would do, without starting it: sizes, memory, tokens, time, and what would be refused."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.reward.rewards import Scorer
from deltarl.rl.config import RunConfig
from deltarl.rl.fleets import cpus_needed, scorer_arguments
from deltarl.rl.problem_set import ProblemSet, demonstrations
from deltarl.rl.warm_start import check_context, load_tokenizer
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

PROBE_PARAMETERS = 50_000_000  # larger models are not probed: their time is estimated from FLOPs
PROBE_TOKENS, PROBE_STEPS = 1024, 8
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """`lines` to read, and `refused`: what would stop the run before its first step."""

    lines: list[str]
    refused: list[str]


def make_plan(config: RunConfig) -> Plan:
    """Loads data, tokenizer and plug-ins as the run would, and measures with a random model of the same size."""
    refused = [str(error) for error in _problems(config)]
    try:
        tokenizer = load_tokenizer(config.model)
        shape = _shape(config, len(tokenizer))
    except (OSError, ValueError) as error:
        return Plan([], refused or [str(error)])
    with torch.device("meta"):
        model = HybridForCausalLM(shape)
    parameters = model.num_parameters()
    lines = [f"policy: {parameters:,} parameters, {shape.num_hidden_layers} layers"]
    memory, learner_bytes, worker_bytes = _memory(config, model)
    lines += memory
    lines += _tokens(config)
    lines += _seconds(config, shape, parameters)
    here = config.learner.num_ranks * learner_bytes + config.rollout.num_workers * worker_bytes
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not torch.cuda.is_available() and here > available:
        refused.append(
            f"all processes together need {here / GIB:.1f} GiB and this machine has {available / GIB:.1f} GiB: lower "
            "rollout.max_num_seqs, rollout.num_workers or learner.num_ranks"
        )
    cpus = os.cpu_count() or 1
    if cpus_needed(config) > cpus:
        lines.append(
            f"Ray CPUs: {cpus_needed(config):g} reserved, {cpus} here; a cluster that is joined must have them"
        )
    return Plan(lines, refused)


def _problems(config: RunConfig) -> Iterator[Exception]:
    """What the run would refuse, each part looked at though another was refused."""

    def data() -> None:
        problems = ProblemSet.load(config, load_tokenizer(config.model))
        if config.sft:
            demonstrations(problems.train, config.sft)

    checks: list[Callable[[], None]] = [
        lambda: Scorer(**scorer_arguments(config)).close(),
        lambda: check_context(config),
        data,
    ]
    for check in checks:
        try:
            check()
        except Exception as error:
            yield error


def _shape(config: RunConfig, vocab_size: int) -> KimiLinearConfig:
    if config.model.path is not None:
        return KimiLinearConfig.from_pretrained(config.model.path)
    own = {"path", "tokenizer_extra_tokens"}
    return hybrid_config(vocab_size=vocab_size, **config.model.model_dump(exclude=own))


def _memory(config: RunConfig, model: HybridForCausalLM) -> tuple[list[str], int, int]:
    """Lines, and bytes of a learner rank and of a rollout worker without activations."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    parts = {"weights": weights, "gradient": weights, "AdamW": 2 * weights}
    if config.learner.beta:
        parts["reference model"] = weights
    if config.learner.baseline == "critic" and config.learner.critic.trunk == "own":
        parts["critic with gradient and AdamW"] = 4 * weights
    rollout = config.rollout
    length = config.data.max_prompt_tokens + rollout.max_tokens
    sequences = min(rollout.max_num_seqs, -(-rollout.prompts_per_step // rollout.num_workers) * rollout.num_generations)
    cache = _bytes(model.new_cache(sequences, length))
    learner, worker = sum(parts.values()), weights + cache
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    return (
        [
            f"memory of each of {config.learner.num_ranks} learner ranks: {_gib(learner)} GiB ({listed}), and the "
            f"activations of {config.learner.max_tokens_per_micro_batch} tokens (a micro-batch), which are not counted",
            f"memory of each of {rollout.num_workers} rollout workers: {_gib(worker)} GiB (weights {_gib(weights)}, "
            f"states and latents of {sequences} sequences of up to {length} tokens {_gib(cache)})",
        ],
        learner,
        worker,
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"


def _bytes(tree: object) -> int:
    """Of all tensors in a decode cache."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, list | tuple):
        return sum(map(_bytes, tree))
    return sum(map(_bytes, vars(tree).values())) if hasattr(tree, "__dict__") else 0


def _tokens(config: RunConfig) -> list[str]:
    rollout = config.rollout
    answers = rollout.prompts_per_step * rollout.num_generations
    return [
        f"a step: {rollout.prompts_per_step} problems x {rollout.num_generations} answers = {answers} answers, at most "
        f"{answers * rollout.max_tokens:,} tokens sampled and {answers * _longest(config):,} learned from, in "
        f"{config.learner.num_minibatches} optimizer steps; {config.steps} steps",
    ]


def _longest(config: RunConfig) -> int:
    return config.data.max_prompt_tokens + config.rollout.max_tokens


def _seconds(config: RunConfig, shape: KimiLinearConfig, parameters: int) -> list[str]:
    """An upper bound of the step's sampling and learning, for answers of full length."""
    rollout, learner = config.rollout, config.learner
    learned = rollout.prompts_per_step * rollout.num_generations * _longest(config)
    # In passes through a model, a forward pass being 1 and a forward and backward pass 3.
    passes = 3.0 + (1.0 if learner.beta else 0.0)
    if learner.baseline == "critic":
        passes += (1.0 + 3.0 * learner.critic.epochs) if learner.critic.trunk == "own" else 1.0
    if parameters > PROBE_PARAMETERS:
        sampled = rollout.prompts_per_step * rollout.num_generations * rollout.max_tokens
        flops = 2 * parameters * (passes * learned + sampled)
        return [
            f"time of a step: not measured, the model is too large to try here. Estimate: 2 x parameters x (tokens "
            f"sampled + {passes:g} x tokens learned from) = {flops:.3g} FLOP at most; divide by what the devices reach"
        ]
    model = HybridForCausalLM(shape)
    update = learned * passes / 3 / (_learning_speed(model) * learner.num_ranks)
    sequences = -(-rollout.prompts_per_step // rollout.num_workers) * rollout.num_generations
    at_once = min(sequences, rollout.max_num_seqs)
    sampling = _decode_seconds(model, at_once) * rollout.max_tokens * -(-sequences // at_once)
    return [
        f"time of a step: at most {sampling + update:.3g} s = sampling {sampling:.3g} s + learning {update:.3g} s, if "
        "all answers were of full length and every process had a core; measured now with a random model of this size: "
        f"{PROBE_STEPS} tokens of {at_once} sequences, a forward and backward pass of {PROBE_TOKENS} tokens, scaled up"
    ]


def _learning_speed(model: HybridForCausalLM) -> float:
    """Tokens per second of a forward and backward pass."""
    ids = torch.randint(3, model.config.vocab_size, (1, PROBE_TOKENS))
    where = torch.arange(PROBE_TOKENS - 1)
    seconds = []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        out = model(ids, cu_seqlens=torch.tensor([0, PROBE_TOKENS]), logits_to_keep=where, logprobs_of=ids[:, 1:])
        assert out.logprobs is not None
        out.logprobs.sum().backward()
        seconds.append(time.perf_counter() - start)
    return PROBE_TOKENS / seconds[-1]


def _decode_seconds(model: HybridForCausalLM, sequences: int) -> float:
    """Of one token of so many sequences at once."""
    engine = Engine(model, max_num_seqs=sequences)
    params = SamplingParams(n=sequences, max_tokens=PROBE_STEPS)
    start = time.perf_counter()
    engine.generate([[3, 4, 5]], [params])
    return (time.perf_counter() - start) / PROBE_STEPS
