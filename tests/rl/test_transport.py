"""Which way weights take: what `auto` chooses, and what is refused with a remedy."""

import pytest

from deltarl.rl.cli import ConfigError
from deltarl.rl.transport import choose_transport, own_gpus

SHARED = ("learner.num_gpus=0.5", "rollout.num_gpus=0.25")
SHARDED = ("learner.num_ranks=2", "learner.sharding=fsdp")
OWN = ("learner.num_gpus=1", "rollout.num_gpus=1", "placement=disaggregated")


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ((), "object_store"),
        (("learner.num_gpus=1",), "object_store"),
        (SHARED, "ipc"),
        ((*SHARED, "rollout.max_staleness=1", "rollout.in_flight=keep"), "ipc"),
        ((*OWN, "rollout.max_staleness=1", "rollout.in_flight=replay"), "collective"),
        ((*SHARED, "in_process=true"), "object_store"),
        ((*SHARED, "learner.num_gpus=0.6", *SHARDED), "object_store"),
        (OWN, "collective"),
        ((*OWN, *SHARDED), "collective"),
        ((*OWN, "rollout.num_gpus=0.5"), "object_store"),
        ((*OWN, "rollout.backend=vllm"), "object_store"),
        (("rollout.weight_transport=collective",), "collective"),
        ((*OWN, "rollout.weight_transport=object_store"), "object_store"),
        ((*SHARED, "rollout.weight_transport=ipc"), "ipc"),
    ],
)
def test_the_way_follows_from_the_layout(tiny, overrides, chosen):
    config = tiny(*overrides)
    assert choose_transport(config)[0] == chosen
    assert own_gpus(config) == (config.rollout.num_gpus == 1.0 and config.placement == "disaggregated")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("rollout.weight_transport=ipc",), r"learner.num_gpus = 0 and rollout.num_gpus = 0: set both, or use"),
        ((*OWN, "rollout.weight_transport=ipc"), "use weight_transport=collective, or placement=colocated"),
        (
            (*SHARED, "learner.num_gpus=0.6", *SHARDED, "rollout.weight_transport=ipc"),
            "learner.sharding = 'fsdp' cuts them up",
        ),
        (("in_process=true", "rollout.weight_transport=collective"), "in_process = true is one: leave it out"),
        (("rollout.backend=vllm", "rollout.weight_transport=collective"), "vLLM is given weights from the memory"),
        (("rollout.weight_transport=nccl",), "'auto', 'object_store', 'collective' or 'ipc'"),
    ],
)
def test_what_cannot_be_is_refused(tiny, overrides, says):
    with pytest.raises(ConfigError, match=says):
        tiny(*overrides)
