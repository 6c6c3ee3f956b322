"""Weights through the object store: what the learner published is what the samplers hold, or an error."""

import sys
from dataclasses import replace

import pytest
import ray
from ray import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_model(seed: int):
    import torch

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.Linear(500, 2))
    model[1].to(torch.bfloat16)
    return model


class Publisher:
    def weights(self):
        from deltarl.model.weights import WeightUpdate

        return WeightUpdate.of(make_model(1), version=17)


class Receiver:
    def __init__(self):
        self.model, self.version = make_model(2), 0

    def load_weights(self, update) -> None:
        update.load_into(self.model)
        self.version = update.version

    def published(self):
        from deltarl.model.weights import WeightUpdate

        return WeightUpdate.of(self.model, self.version)


def test_published_weights_arrive_bit_for_bit_and_changed_ones_are_refused(make_gang, make_fleet):
    from deltarl.model.weights import WeightMismatchError, WeightUpdate

    expected = WeightUpdate.of(make_model(1), version=17)
    fleet = make_fleet(Receiver, 1)
    fleet.broadcast("load_weights", make_gang(Publisher, 1).first("weights"))
    (held,) = fleet.map("published", [()])
    assert (held.version, held.checksum) == (17, expected.checksum)
    assert all((held.arrays[name] == array).all() for name, array in expected.arrays.items())

    arrays = {name: array.copy() for name, array in expected.arrays.items()}
    arrays["0.weight"][3, 4] += 1e-3
    with pytest.raises(WeightMismatchError, match="weights version 18"):
        fleet.broadcast("load_weights", ray.put(replace(expected, version=18, arrays=arrays)))
