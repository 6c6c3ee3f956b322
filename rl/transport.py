"""How weights get from the learner to the samplers: which way a run takes, and which it may not."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from deltarl.rl.config import RunConfig

WeightTransport = Literal["auto", "object_store", "collective", "ipc"]
Transport = Literal["object_store", "collective", "ipc"]


def choose_transport(config: "RunConfig") -> tuple[Transport, str]:
    """The transport, and why it is this one.

    Raises:
        ValueError: the one that the recipe names is not for this run.
    """
    asked = config.rollout.weight_transport
    if asked != "auto":
        _refuse(config, asked)
        return asked, "by rollout.weight_transport"
    if config.in_process or config.rollout.backend == "vllm" or not _gpus(config):
        return "object_store", "weights on GPUs alone have a shorter way"
    if config.placement == "colocated" and config.learner.sharding == "none":
        return "ipc", "learner and samplers share GPUs"
    if own_gpus(config):
        return "collective", "learner and samplers have GPUs of their own"
    return "object_store", "shards are put together on the host, or GPUs are shared among samplers"


def own_gpus(config: "RunConfig") -> bool:
    """Whether no two processes among learner ranks and samplers have the same GPU, as NCCL wants it."""
    return config.placement == "disaggregated" and config.rollout.num_gpus > 0.5 and _gpus(config)


def _gpus(config: "RunConfig") -> bool:
    return bool(config.learner.num_gpus and config.rollout.num_gpus)


def _refuse(config: "RunConfig", asked: Transport) -> None:
    if asked == "object_store":
        return
    key = f"rollout.weight_transport = {asked!r}"
    if config.in_process:
        raise ValueError(f"{key} is between processes, and in_process = true is one: leave it out")
    if config.rollout.backend == "vllm":
        raise ValueError(
            f"{key}: vLLM is given weights from the memory of the host; use weight_transport=object_store with "
            "rollout.backend = 'vllm'"
        )
    if asked == "ipc" and not _gpus(config):
        raise ValueError(
            f"{key} passes handles of GPU memory, but learner.num_gpus = {config.learner.num_gpus:g} and "
            f"rollout.num_gpus = {config.rollout.num_gpus:g}: set both, or use weight_transport=object_store, which is "
            "shared memory where there is no GPU"
        )
    if asked == "ipc" and config.placement == "disaggregated":
        raise ValueError(
            f"{key} is for learner and samplers on one GPU, and placement = 'disaggregated' gives each its own: use "
            "weight_transport=collective, or placement=colocated"
        )
    if asked == "ipc" and config.learner.sharding != "none":
        raise ValueError(
            f"{key} needs the whole weights on the samplers' GPU, and learner.sharding = {config.learner.sharding!r} "
            "cuts them up: use weight_transport=object_store, or sharding=none"
        )
