"""The trace of a run: its spans, what a kill or a resume leaves of it, its bound, and the idle fractions."""

import json
import threading
from pathlib import Path

import pytest

from deltarl.rl import timeline as timeline_module
from deltarl.rl.timeline import Timeline, of_step
from deltarl.rl.trace import TRACE_FILE, read_trace


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch):
        self.now = 100.0
        patch.setattr(timeline_module.time, "monotonic", lambda: self.now)
        patch.setattr(timeline_module.time, "time", lambda: self.now + 1_000_000.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_spans_come_back_as_they_were(tmp_path, clock):
    timeline = Timeline(tmp_path)
    with of_step(3):
        first = timeline.begin("rollout", 1, "generate")
    clock.now += 2.0
    with of_step(4):
        second = timeline.begin("learner", 0, "update")
    clock.now += 0.5
    timeline.end(second)
    timeline.end(first)
    timeline.close()
    learner, rollout = read_trace(tmp_path / TRACE_FILE)
    assert learner == ("learner-0", "update", 4, 1_000_102.0, 1_000_102.5)
    assert rollout == ("rollout-1", "generate", 3, 1_000_100.0, 1_000_102.5)
    assert (learner.fleet, rollout.fleet) == ("learner", "rollout")
    assert [span.step for span in read_trace(tmp_path / TRACE_FILE, last_steps=1)] == [4]
    events = json.loads((tmp_path / TRACE_FILE).read_text())
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["learner-0", "rollout-1"]


def test_a_thread_has_its_own_step(tmp_path):
    timeline = Timeline(tmp_path)

    def ahead() -> None:
        with of_step(7), timeline.call("rollout", 0, "generate"):
            pass

    with of_step(5):
        thread = threading.Thread(target=ahead)
        thread.start()
        thread.join()
        with timeline.call("learner", 0, "update"):
            pass
    timeline.close()
    assert [span.step for span in read_trace(tmp_path / TRACE_FILE)] == [7, 5]


def write(timeline: Timeline, steps: range) -> None:
    for step in steps:
        with of_step(step), timeline.call("rollout", 0, "generate"):
            pass
    timeline.idle({})


@pytest.mark.parametrize("cut", [0, 1, 4, 20, 60])
def test_a_killed_trace_is_read_whole_and_goes_on_with_the_resumed_run(tmp_path, cut):
    write(Timeline(tmp_path), range(5))  # not closed
    file = tmp_path / TRACE_FILE
    json.loads(file.read_text() + "]")
    file.write_bytes(file.read_bytes()[: file.stat().st_size - cut])
    before = [span.step for span in read_trace(file)]
    assert before == list(range(5 if not cut else 4))
    resumed = Timeline(tmp_path)
    write(resumed, range(5, 7))
    resumed.close()
    again = Timeline(tmp_path)
    again.close()
    assert [span.step for span in read_trace(file)] == [*before, 5, 6]
    assert {e["ph"] for e in json.loads(file.read_text())} == {"M", "X"}


def test_the_file_is_bounded_and_keeps_the_newest(tmp_path):
    timeline = Timeline(tmp_path, max_bytes=20_000)
    for step in range(400):
        write(timeline, range(step, step + 1))
        assert (tmp_path / TRACE_FILE).stat().st_size <= 20_000
    timeline.close()
    steps = [span.step for span in read_trace(tmp_path / TRACE_FILE)]
    assert steps == list(range(steps[0], 400))
    assert len(steps) > 50
    names = [e for e in json.loads((tmp_path / TRACE_FILE).read_text()) if e["ph"] == "M"]
    assert len(names) == 3


def test_idle_is_the_share_of_all_workers_time_without_a_call_also_of_calls_that_go_on(tmp_path, clock):
    timeline = Timeline(tmp_path)
    long = timeline.begin("rollout", 0, "generate")
    clock.now += 3.0
    with timeline.call("rollout", 1, "generate"):
        clock.now += 1.0
    assert timeline.idle({"rollout": 2, "reward": 1}) == pytest.approx({"idle/rollout": 1 - 5 / 8, "idle/reward": 1.0})
    clock.now += 1.0
    timeline.end(long)
    clock.now += 3.0
    assert timeline.idle({"rollout": 2, "reward": 1}) == pytest.approx({"idle/rollout": 1 - 1 / 8, "idle/reward": 1.0})


def test_a_disk_that_is_full_ends_the_trace_and_not_the_run(tmp_path, caplog):
    timeline = Timeline(tmp_path)
    with Path("/dev/full").open("ab", buffering=0) as full:
        timeline._file._file = full
        write(timeline, range(3))
    assert "can no longer be written" in caplog.text
    write(timeline, range(3))
    timeline.close()
