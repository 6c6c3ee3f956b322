"""An optimizer read from disk goes on as the one that was written."""

import pytest
import torch
from torch import nn

from deltarl.rl.config import LearnerConfig
from deltarl.rl.optimizer import lr_schedule, policy_optimizer
from deltarl.rl.optimizer_io import load_optimizer, optimizer_snapshot

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Training:
    def __init__(self, device, kind):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).to(device)
        self.optimizer = policy_optimizer(self.model, LearnerConfig(optimizer=kind, learning_rate=0.1))
        self.scheduler = lr_schedule("linear", self.optimizer, 2, 20)

    def steps(self, count):
        device = next(self.model.parameters()).device
        for i in range(count):
            x = torch.full((3, 8), i + 1.0, device=device)
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def test_it_goes_on_bit_for_bit(device, kind, tmp_path):
    first, again = Training(device, kind), Training(device, kind)
    first.steps(4)
    optimizer_snapshot(first.model, first.optimizer, first.scheduler, {"version": 4}, keep=True)(tmp_path)
    again.model.load_state_dict(first.model.state_dict())
    counters = load_optimizer(tmp_path, again.model, again.optimizer, again.scheduler)
    assert counters["version"] == 4
    first.steps(3)
    again.steps(3)
    assert again.scheduler.get_last_lr() == first.scheduler.get_last_lr()
    for ours, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
