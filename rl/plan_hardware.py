"""A run on devices that are not here: what each would hold, what is moved, and a step's time at the devices' limits."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel

from deltarl.actor.placement import Node, described, fits
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.config import RunConfig
from deltarl.rl.hardware import DEVICES, HardwareConfig
from deltarl.rl.layout import layout
from deltarl.rl.plan_sizes import (
    LAYER,
    activation_bytes,
    active_parameters,
    learner_parts,
    learner_passes,
    longest,
    read_by_decoding,
    sequence_bytes,
    sequences_at_once,
    staged_bytes,
    stored_bytes,
)
from deltarl.rl.transport import choose_transport

USABLE = 0.92  # of a device's memory: the rest is the CUDA context's, the libraries' and the allocator's
HASH = 4e9  # bytes/s of the checksum on one core, as measured by benchmarks/publication.py
GB = 1e9


@dataclass(frozen=True)
class Plan:
    """`lines` to read, and `refused`: what, of that which is looked at, would stop the run before its first step."""

    lines: list[str]
    refused: list[str]


def plan_hardware(config: RunConfig, model: PreTrainedModel, hardware: HardwareConfig) -> Plan:
    """Sizes in 10^9 bytes, as data sheets count."""
    if not isinstance(model, HybridForCausalLM):
        return Plan([], ["hardware is planned for hybrids alone: leave it out"])
    device = DEVICES[hardware.device]
    memory = _Memory.of(config, model)
    total, active = model.num_parameters(), active_parameters(model)
    lines = [
        f"planned for {hardware.nodes} x {hardware.devices_per_node} {hardware.device} ({device.memory / GB:g} GB, of "
        f"which {USABLE:.0%} are counted on, {device.flops / 1e12:g} TFLOP/s, {device.bandwidth / 1e12:g} TB/s)",
        f"a token is multiplied with {active / GB:.2f}e9 of {total / GB:.2f}e9 parameters",
        *memory.lines(config, device.memory * USABLE),
        *_publication(config, model, hardware),
        *_step(config, model, hardware),
    ]
    return Plan(lines, list(_refused(config, model, hardware, memory)))


@dataclass(frozen=True)
class _Memory:
    """Bytes of one learner rank on its device and on the host, and of one rollout worker on its device."""

    parts: dict[str, int]
    activations: int
    weights: int
    staged: int
    sequence: int
    sequences: int
    offload: bool

    @classmethod
    def of(cls, config: RunConfig, model: HybridForCausalLM) -> "_Memory":
        return cls(
            learner_parts(config, model),
            activation_bytes(config, model),
            stored_bytes(model),
            staged_bytes(config, model),
            sequence_bytes(config, model),
            sequences_at_once(config),
            config.learner.sharding == "fsdp_offload",
        )

    @property
    def rank(self) -> int:
        held = {LAYER: self.parts[LAYER]} if self.offload else self.parts
        return sum(held.values()) + self.activations

    @property
    def rank_on_host(self) -> int:
        return sum(self.parts.values()) - self.parts[LAYER] if self.offload else 0

    @property
    def sampler(self) -> int:
        return self.weights + self.staged + self.sequences * self.sequence

    def lines(self, config: RunConfig, usable: float) -> Iterator[str]:
        listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in self.parts.items())
        host = f" and {self.rank_on_host / GB:.1f} GB of the host's memory" if self.offload else ""
        yield (
            f"a learner rank: {self.rank / GB:.1f} GB of its device{host} ({listed}, activations of "
            f"{config.learner.max_tokens_per_micro_batch} tokens, by a formula, {self.activations / GB:.1f})"
        )
        room = max(0, int((usable - self.weights - self.staged) // self.sequence))
        staged = f", the next version of them {self.staged / GB:.1f}" if self.staged else ""
        yield (
            f"a rollout worker: {self.sampler / GB:.1f} GB of its device (weights {self.weights / GB:.1f}{staged}, "
            f"{self.sequences} sequences of up to {longest(config)} tokens at {self.sequence / 1e6:.1f} MB of states "
            f"and latents); a device of its own has room for {room} sequences beside the weights"
        )


def _publication(config: RunConfig, model: HybridForCausalLM, hardware: HardwareConfig) -> Iterator[str]:
    """What one version of the weights moves, and the seconds at the limits of the links."""
    size, workers = stored_bytes(model), config.rollout.num_workers
    device, (way, _) = DEVICES[hardware.device], choose_transport(config)
    nodes = min(hardware.nodes, workers)
    others = nodes - 1 if config.placement == "colocated" else min(nodes, hardware.nodes - 1)
    gathered = 4 * model.num_parameters() if config.learner.sharding != "none" else 0
    together = f", put together from {gathered / GB:.1f} GB of fp32 shards" if gathered else ""
    if way == "ipc":
        yield f"publishing a version: each of {workers} rollout workers copies {size / GB:.1f} GB on its device"
        return
    if way == "collective":
        link = min(
            hardware.network_gb_per_s * GB if others else device.peers,
            device.host if gathered else device.peers,  # shards are put together on the host
        )
        yield (
            f"publishing a version: {size / GB:.1f} GB by broadcast from rank 0 to {workers} rollout workers "
            f"({size / link:.1f} s at {link / GB:g} GB/s){together}; 2 checksums, on devices"
        )
        return
    yield (
        f"publishing a version: {size / GB:.1f} GB from rank 0 into its host's memory ({size / device.host:.1f} s at "
        f"{device.host / GB:g} GB/s){together}; {others * size / GB:.1f} GB over the network to {others} other "
        f"nodes; {workers * size / GB:.1f} GB from object stores into {workers} rollout workers; 3 checksums one after "
        f"the other, {3 * size / HASH:.0f} s at {HASH / GB:g} GB/s"
    )


def _step(config: RunConfig, model: HybridForCausalLM, hardware: HardwareConfig) -> Iterator[str]:
    """Seconds at the limits of the data sheet, for answers of full length."""
    rollout, learner, device = config.rollout, config.learner, DEVICES[hardware.device]
    answers, active = rollout.prompts_per_step * rollout.num_generations, active_parameters(model)
    at_once = sequences_at_once(config)
    rounds = -(-answers // (rollout.num_workers * at_once))
    read = read_by_decoding(model, at_once) + at_once * sequence_bytes(config, model)
    decode = max(read / device.bandwidth, 2 * active * at_once / device.flops)
    prefill = 2 * active * rollout.prompts_per_step * config.data.max_prompt_tokens / rollout.num_workers / device.flops
    sampling = rounds * rollout.max_tokens * decode + prefill
    passes = learner_passes(config) + learner.activation_checkpointing
    tokens = answers * longest(config)
    computing = 2 * active * passes * tokens / learner.num_ranks / device.flops
    micro = -(-tokens // (learner.num_ranks * learner.max_tokens_per_micro_batch))
    moved, link = 0.0, device.peers
    if learner.sharding != "none":
        # fp32 weights to every rank for the forward and for the backward pass, and gradients back.
        moved = 3 * 4 * model.num_parameters() * (learner.num_ranks - 1) / learner.num_ranks * micro
    if learner.num_ranks > hardware.devices_per_node:
        link = hardware.network_gb_per_s * GB
    seconds = moved / link
    if learner.sharding == "fsdp_offload":  # this rank's shards, from the host's memory and back
        seconds += 3 * 4 * model.num_parameters() / learner.num_ranks * micro / device.host
    learning = max(computing, seconds)
    ahead = rollout.max_staleness > 0
    step = max(sampling, learning) if ahead else sampling + learning
    yield (
        f"a decode step of {at_once} sequences: {read / GB:.1f} GB read (weights "
        f"{read_by_decoding(model, at_once) / GB:.1f}, states and latents the rest), {1e3 * decode:.1f} ms"
    )
    joined = "the longer" if ahead else "the sum"
    way = f"{moved / GB:.0f} GB a rank at {link / GB:g} GB/s"
    if learner.sharding == "fsdp_offload":
        way += " and shards from and to the host"
    yield (
        f"time of a step at these limits, which no run reaches: {step:.0f} s, {joined} of sampling {sampling:.0f} s "
        f"({rounds} rounds of {rollout.max_tokens} tokens; prompts {prefill:.1f} s) and learning {learning:.0f} s, "
        f"the longer of products, {computing:.0f} s, and weights and gradients of {micro} micro-batches, "
        f"{way}, {seconds:.0f} s; if all answers were of full length, without optimizer, scoring, evaluation "
        "and publishing"
    )


def _refused(config: RunConfig, model: HybridForCausalLM, hardware: HardwareConfig, memory: _Memory) -> Iterator[str]:
    usable = DEVICES[hardware.device].memory * USABLE
    if not (config.learner.num_gpus and config.rollout.num_gpus):
        yield "hardware has GPUs that nobody uses: set learner.num_gpus and rollout.num_gpus, or leave hardware out"
    nodes = [Node(str(i), hardware.cpus_per_node, hardware.devices_per_node) for i in range(hardware.nodes)]
    asked = layout(config, nodes)
    if not fits(asked.bundles, nodes):
        yield f"{described(asked.bundles)}: more than {hardware.nodes} nodes of {hardware.devices_per_node} GPUs have"
    has = f"{hardware.device} has {usable / GB:.1f} GB usable"
    if memory.rank > usable:
        yield f"a learner rank needs {memory.rank / GB:.1f} GB and {has}: {_remedies(config, model, usable)}"
    if memory.weights > usable:
        yield (
            f"a rollout worker needs {memory.weights / GB:.1f} GB for the weights alone and {has}: no backend here "
            f"cuts a model up among GPUs, so take devices of more memory ({_roomier(memory.weights)})"
        )
    elif memory.sampler > usable:
        yield f"a rollout worker needs {memory.sampler / GB:.1f} GB and {has}: lower rollout.max_num_seqs"
    elif config.placement == "colocated":
        beside = -(-config.rollout.num_workers // config.learner.num_ranks)
        both = memory.rank + beside * memory.sampler
        if memory.rank <= usable < both:
            yield (
                f"a learner rank and its {beside} rollout workers need {both / GB:.1f} GB together and {has}: set "
                "placement=disaggregated, or lower rollout.max_num_seqs"
            )
    on_node = min(config.learner.num_ranks, hardware.devices_per_node)
    host = on_node * memory.rank_on_host
    # The main rank: model, masters and two moments copied for a checkpoint; a version and its copy in the object store.
    copies = memory.weights + 12 * model.num_parameters() + 2 * memory.weights
    start = on_node * memory.weights
    if (most := host + max(start, copies)) > hardware.host_memory_gb * GB:
        yield (
            f"a node's host needs {most / GB:.0f} GB (shards of {on_node} ranks {host / GB:.0f}; besides, at the start "
            f"every rank reads the model, {start / GB:.0f} in all, and later a checkpoint and a published version take "
            f"{copies / GB:.0f}) and hardware.host_memory_gb = {hardware.host_memory_gb:g}: lower "
            "learner.num_ranks, or take nodes with more"
        )


def _remedies(config: RunConfig, model: HybridForCausalLM, usable: float) -> str:
    """Settings of the learner under which a rank would fit."""
    found = []
    for ranks in (8, 16, 32):
        for sharding in ("fsdp", "fsdp_offload"):
            learner = config.learner.model_copy(update={"num_ranks": ranks, "sharding": sharding, "lora": None})
            changed = config.model_copy(update={"learner": learner})
            if _Memory.of(changed, model).rank <= usable:
                found.append(f"learner.num_ranks={ranks} with sharding={sharding}")
    return "it would fit with " + ", or ".join(found[:2]) if found else "lower learner.max_tokens_per_micro_batch"


def _roomier(needed: int) -> str:
    names = [name for name, device in DEVICES.items() if device.memory * USABLE > needed]
    return ", ".join(names) or "none in the table of rl/hardware.py has it"
