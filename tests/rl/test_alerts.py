"""Alerts: raised when a condition begins, off when it ends, a function of the rows alone."""

import pytest

from deltarl.rl.alerts import LOOK_AT, AlertConfig, Watch
from deltarl.rl.metrics import metric_doc
from deltarl.rl.report_tiles import build_tiles

CONFIG = AlertConfig(window=2, entropy_share=0.5, reward_drop=0.5, mismatch_k3=1e-3)


def looked(rows, watch: Watch | None = None) -> list[tuple[set[str], list[str]]]:
    """Of each row, the conditions that hold and the alerts it raised."""
    watch = watch or Watch(CONFIG)
    found = []
    for row in rows:
        metrics, new = watch.look(row)
        found.append(({name for name in LOOK_AT if metrics[f"alert/{name}"]}, [a.name for a in new]))
    return found


def series(name: str, values, **other):
    return [{name: value, **other} for value in values]


def test_entropy_is_compared_with_the_first_window():
    found = looked(series("entropy", [2.0, 1.0, 1.0, 0.6, 0.7, 0.9, 0.9, 0.1]))
    held = [bool(names) for names, _ in found]
    assert held == [False, False, False, False, True, False, False, True]  # means 1.5, 1, .8, .65, .8, .9, .5
    assert [new for _, new in found] == [[], [], [], [], ["entropy"], [], [], ["entropy"]]


def test_reward_is_compared_with_the_best_window_in_its_spread():
    rows = series("reward/mean", [0.1, 0.3, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6], **{"reward/std": 0.4})
    assert [bool(names) for names, _ in looked(rows)] == [False] * 6 + [True, True]  # below 0.9 − 0.2
    assert [new for _, new in looked(rows)][-2:] == [["reward"], []]
    falling = series("reward/mean", [-1.0, -1.0, -2.0, -2.0], **{"reward/std": 1.0})
    assert [bool(names) for names, _ in looked(falling)] == [False, False, False, True]


def test_a_reward_that_was_the_same_everywhere_may_dip_but_not_fall():
    rows = [{"reward/mean": r, "reward/std": s} for r, s in [(1, 0), (1, 0), (0.95, 0.2), (0.97, 0.1), (0.3, 0.46)]]
    assert [bool(names) for names, _ in looked(rows)] == [False] * 4 + [True]
    before = {"reward/mean": 0.5, "reward/std": 0.5}
    assert not any(names for names, _ in looked([before, *rows[:4], {"reward/mean": 0.8, "reward/std": 0.4}]))


@pytest.mark.parametrize(
    ("name", "metric", "good", "bad"), [("mismatch", "mismatch/k3", 9e-4, 2e-3), ("skipped", "optim/skipped", 0, 1)]
)
def test_what_counts_at_once(name, metric, good, bad):
    assert looked(series(metric, [good, bad, bad, good, bad])) == [
        (set(), []), ({name}, [name]), ({name}, []), (set(), []), ({name}, [name]),
    ]  # fmt: skip


def test_what_older_weights_sampled_may_differ():
    assert looked([{"mismatch/k3": 2e-3, "staleness/max": 1.0}]) == [(set(), [])]
    assert looked([{"mismatch/k3": 2e-3, "staleness/max": 0.0}]) == [({"mismatch"}, ["mismatch"])]


def test_a_mean_over_nothing_is_passed_over():
    assert looked([{"entropy": None, "reward/mean": float("nan"), "mismatch/k3": None}] * 5) == [(set(), [])] * 5


def test_a_watch_that_was_shown_the_rows_before_goes_on_as_the_one_that_saw_them():
    rows = [
        {"entropy": e, "reward/mean": r, "reward/std": 0.3}
        for e, r in zip([2, 2, 1.5, 0.5, 0.4, 0.3], [0, 1, 1, 0.9, 0.1, 0.1], strict=True)
    ]
    resumed = Watch(CONFIG)
    resumed.replay([{"eval/pass@1": 0.0}, *rows[:4]])
    assert looked(rows[4:], resumed) == looked(rows)[4:]
    assert any(names for names, _ in looked(rows)[4:])


def test_alerts_are_documented_and_stand_in_the_report_with_what_to_look_at():
    for name in LOOK_AT:
        metric_doc(f"alert/{name}")
    rows = [{"step": s, "alert/entropy": float(s in (3, 4)), "alert/reward": 0.0} for s in range(1, 6)]
    tiles = [t for t in build_tiles(rows) if t.label.startswith("Alert")]
    assert [(t.label, t.value, t.tone) for t in tiles] == [("Alert: entropy", "step 3", "bad")]
    assert tiles[0].detail == "at 2 steps. " + LOOK_AT["entropy"]
