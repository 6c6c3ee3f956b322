"""The Prometheus endpoint: names, values and labels of the newest metrics, for this machine alone."""

import math
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deltarl.rl.exports import Exports, gauge_name
from deltarl.rl.metrics import METRICS


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    assert {tuple(sample.labels.items()) for sample in samples} == {(("run", "tiny"),)}
    return {sample.name: sample.value for sample in samples}


def test_the_newest_value_of_each_metric_is_served_until_the_run_ends(port):
    exports = Exports("tiny", "127.0.0.1", port)
    exports.log(1, {"reward/mean": 0.25, "eval/pass@1": 0.5, "entropy": math.nan})
    exports.log(2, {"reward/mean": 0.75})
    found = served(port)
    assert math.isnan(found.pop("deltarl_entropy"))
    assert found == {"deltarl_reward_mean": 0.75, "deltarl_eval_pass_1": 0.5, "deltarl_step": 2}
    exports.close()
    with pytest.raises(OSError, match="refused"):
        served(port)


def test_a_port_that_is_taken_is_told_and_the_run_goes_on(port, caplog):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        exports = Exports("tiny", "127.0.0.1", port)
    assert "going on without (logging.prometheus_port)" in caplog.text
    exports.log(1, {"reward/mean": 0.25})
    exports.close()


def test_without_a_port_nothing_listens(monkeypatch):
    monkeypatch.setattr("deltarl.rl.exports.start_http_server", lambda *args: pytest.fail("it listens"))
    Exports("tiny", "127.0.0.1", None).close()


def test_no_two_metrics_have_the_same_gauge():
    names = {gauge_name(name) for name in METRICS}
    assert len(names) == len(METRICS)
