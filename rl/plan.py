"""What a run would do, without starting it: sizes, memory, tokens, an estimate of time, and what it would refuse."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, KimiLinearConfig, PreTrainedModel

from deltarl.model.checkpoint import round_weights
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import is_hybrid
from deltarl.model.routing import routing_dtype, routing_shape
from deltarl.reward.rewards import Scorer
from deltarl.rl.config import RunConfig
from deltarl.rl.fleets import cpus_needed, gpu_shares, scorer_arguments
from deltarl.rl.plan_hardware import Plan, plan_hardware
from deltarl.rl.plan_sizes import (
    GIB,
    learner_parts,
    learner_passes,
    longest,
    sequence_bytes,
    sequences_at_once,
    staged_bytes,
    stored_bytes,
)
from deltarl.rl.problem_set import Demonstration, ProblemSet, demonstrations
from deltarl.rl.warm_start import check_context, load_tokenizer
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

PROBE_PARAMETERS = 50_000_000  # larger models are not probed: their time is estimated from FLOPs
PROBE_TOKENS, PROBE_STEPS, PROBE_DEMONSTRATIONS = 1024, 8, 256


def make_plan(config: RunConfig) -> Plan:
    """Loads data, tokenizer and plug-ins as the run would, and measures with a random model of the same size."""
    shown = list[Demonstration]()
    refused = [str(error) for error in _problems(config, shown)]
    try:
        # A folder with sizes alone, for a checkpoint that is elsewhere, has no tokenizer to count; sizes say enough.
        vocabulary = len(load_tokenizer(config.model)) if config.model.path is None else 0
        with torch.device("meta"):
            model = _model(config, vocabulary)
    except (OSError, ValueError) as error:
        return Plan([], refused or [str(error)])
    lines = [f"policy: {model.num_parameters():,} parameters, {model.config.num_hidden_layers} layers"]
    memory, learner_bytes, worker_bytes = _memory(config, model)
    lines += memory
    lines += _tokens(config)
    lines += _routing(config, model)
    if config.hardware is not None:
        there = plan_hardware(config, model, config.hardware)
        return Plan([*lines, *there.lines], [*refused, *there.refused])
    lines += _seconds(config, model, shown)
    here = config.learner.num_ranks * learner_bytes + config.rollout.num_workers * worker_bytes
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not gpu_shares(config) and here > available:
        refused.append(
            f"all processes together need {here / GIB:.1f} GiB and this machine has {available / GIB:.1f} GiB: lower "
            "rollout.max_num_seqs, rollout.num_workers or learner.num_ranks"
        )
    cpus = os.cpu_count() or 1
    if cpus_needed(config) > cpus:
        lines.append(
            f"Ray CPUs: {cpus_needed(config):g} reserved, {cpus} here; a cluster that is joined must have them"
        )
    if (gpus := sum(gpu_shares(config))) > torch.cuda.device_count():
        lines.append(
            f"Ray GPUs: {gpus:g} reserved, {torch.cuda.device_count()} here; a cluster that is joined must have them"
        )
    return Plan(lines, refused)


def _problems(config: RunConfig, shown: list[Demonstration]) -> Iterator[Exception]:
    """What the run would refuse, each part looked at though another was refused.

    Args:
        shown: gets the demonstrations of the warm start, if there is one.
    """

    def data() -> None:
        path = config.model.path
        if path is not None and Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
            raise ValueError(
                f"model.path = {path} has no weights (*.safetensors), only sizes to plan with, and the data are "
                "not looked at: a run needs the folder of the checkpoint and its tokenizer"
            )
        problems = ProblemSet.load(config, load_tokenizer(config.model))
        if config.sft:
            shown.extend(demonstrations(problems.train, config.sft))

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


def _model(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    """The policy without its weights."""
    path = config.model.path
    if path is None:
        made = HybridForCausalLM(hybrid_config(vocab_size=vocab_size, **config.model.sizes))
        return round_weights(made, getattr(torch, config.model.dtype))
    if is_hybrid(path):
        sizes = KimiLinearConfig.from_pretrained(path)
        return HybridForCausalLM(sizes).type(sizes.dtype or torch.float32)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    return model


def _memory(config: RunConfig, model: PreTrainedModel) -> tuple[list[str], int, int]:
    """Lines, and bytes of a learner rank and of a rollout worker without activations."""
    rollout, parts = config.rollout, learner_parts(config, model)
    weights, sequences = stored_bytes(model), sequences_at_once(config)
    cache, kept = 0, "; keys and values of its sequences are not counted"
    if isinstance(model, HybridForCausalLM):
        cache = sequences * sequence_bytes(config, model)
        kept = f", states and latents of {sequences} sequences of up to {longest(config)} tokens {_gib(cache)}"
    staged = staged_bytes(config, model)
    learner, worker = sum(parts.values()), weights + staged + cache
    if staged:
        kept = f", the next version of them {_gib(staged)}{kept}"
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    if config.learner.sharding == "fsdp_offload":
        listed += "; all but the layer in the host's memory"
    return (
        [
            f"memory of each of {config.learner.num_ranks} learner ranks: {_gib(learner)} GiB ({listed}), and the "
            f"activations of {config.learner.max_tokens_per_micro_batch} tokens (a micro-batch), which are not counted",
            f"memory of each of {rollout.num_workers} rollout workers: {_gib(worker)} GiB (weights {_gib(weights)}"
            f"{kept})",
        ],
        learner,
        worker,
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"


def _tokens(config: RunConfig) -> list[str]:
    rollout = config.rollout
    answers = rollout.prompts_per_step * rollout.num_generations
    before_refills = "before refills " if rollout.max_refills else ""
    return [
        f"a step: {rollout.prompts_per_step} problems x {rollout.num_generations} answers = {answers} answers, at most "
        f"{answers * rollout.max_tokens:,} tokens sampled {before_refills}and {answers * longest(config):,} learned "
        f"from, in {config.learner.num_minibatches} optimizer steps; {config.steps} steps",
    ]


def _routing(config: RunConfig, model: PreTrainedModel) -> list[str]:
    if not config.learner.router_replay or not isinstance(model, HybridForCausalLM):
        return []
    layers, chosen = routing_shape(model.config)
    size = layers * chosen * routing_dtype(model.config).itemsize
    return [
        f"router replay: {size} bytes a token of {layers} layers x {chosen} experts, at most "
        f"{size * longest(config):,} an answer, from samplers to learner"
    ]


def _seconds(config: RunConfig, model: PreTrainedModel, shown: Sequence[Demonstration]) -> list[str]:
    """An estimate of the step's sampling and learning, for answers of full length, and of the warm start."""
    rollout, learner, parameters = config.rollout, config.learner, model.num_parameters()
    without = "without worked solutions, corrections, refills, scoring, evaluation and publishing"
    learned = rollout.prompts_per_step * rollout.num_generations * longest(config)
    passes = learner_passes(config)
    if parameters > PROBE_PARAMETERS or not isinstance(model, HybridForCausalLM) or rollout.backend != "native":
        sampled = rollout.prompts_per_step * rollout.num_generations * rollout.max_tokens
        flops = 2 * parameters * (passes * learned + sampled)
        return [
            "time of a step: not measured; only a small hybrid that our engine samples is tried. Estimate: 2 x "
            f"parameters x (tokens sampled + {passes:g} x tokens learned from) = {flops:.3g} FLOP, if all answers were "
            f"of full length, {without}; divide by what the devices reach"
        ]
    model = HybridForCausalLM(model.config).type(model.dtype)
    with _threads(learner.num_threads):
        speed = _learning_speed(model) * learner.num_ranks
    update = learned * passes / 3 / speed
    sequences = -(-rollout.prompts_per_step // rollout.num_workers) * rollout.num_generations
    at_once = min(sequences, rollout.max_num_seqs)
    with _threads(rollout.num_threads):
        sampling = _decode_seconds(model, at_once) * rollout.max_tokens * -(-sequences // at_once)
    ahead = rollout.max_staleness > 0 and not config.in_process
    step, joined = (max(sampling, update), "the longer of") if ahead else (sampling + update, "the sum of")
    return [
        f"time of a step: an estimate of {step:.3g} s, {joined} sampling {sampling:.3g} s and learning {update:.3g} s, "
        f"if all answers were of full length and every thread had a core, {without}; measured now with "
        f"a random model of this size: {PROBE_STEPS} tokens of {at_once} sequences, a forward and backward pass of "
        f"{PROBE_TOKENS} tokens, scaled up",
        *_warm_start(config, shown, speed),
    ]


def _warm_start(config: RunConfig, shown: Sequence[Demonstration], speed: float) -> Iterator[str]:
    """An estimate of its time, at so many tokens a second."""
    if config.sft is None or not shown:
        return
    some, tokenizer = shown[:PROBE_DEMONSTRATIONS], load_tokenizer(config.model)
    length = statistics.fmean(len(d.prompt_ids) + len(tokenizer.encode(d.completion)) for d in some)
    tokens = config.sft.steps * config.sft.batch_size * length
    yield (
        f"time of the warm start before it: an estimate of {tokens / speed:.3g} s, at the same speed, for "
        f"{config.sft.steps} steps of {config.sft.batch_size} solutions of {length:.0f} tokens with their problems"
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads, as a process of the run has, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
