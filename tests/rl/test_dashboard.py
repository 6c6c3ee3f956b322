"""The dashboard's server: what it reads, how it follows files, and what it refuses to open."""

import asyncio
import json
import os
import struct

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from deltarl.rl.dashboard.app import Dashboard
from deltarl.rl.dashboard.bins import binned, make_grid
from deltarl.rl.dashboard.columns import load, parse_rows, peek
from deltarl.rl.dashboard.index import RunIndex
from deltarl.rl.dashboard.samples import SampleIndex, Wanted, compare, word_diff
from deltarl.rl.dashboard.tail import START, read_new
from deltarl.rl.dashboard.trace import read_bars
from deltarl.rl.jsonl import truncate_after

HOSTILE = '</script><img src=x onerror="document.title=`hacked`"> \u2028 \ud83d'


def write_rows(path, rows, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(step, **values):
    return {"step": step, "reward/mean": step / 10, "tokens/total": 100.0 * step} | values


def sample(step, prompt, completion, kind="right", split="eval"):
    found = {"step": step, "split": split, "prompt": prompt, "completion": completion, "gold": "4", "score": 1.0}
    return found | {"kind": kind, "extracted": None, "seconds": 0.1, "finish_reason": "stop"}


@pytest.fixture
def runs(tmp_path):
    """Two runs in a folder, beside a secret."""
    root = tmp_path / "runs"
    write_rows(root / "a" / "metrics.jsonl", [row(s) for s in range(1, 6)])
    write_rows(root / "deep" / "b" / "metrics.jsonl", [row(s, entropy=1.0) for s in range(1, 4)])
    (root / "a" / "config.yaml").write_text("name: a\nsteps: 5\nlearner: {learning_rate: 0.001}\n")
    write_rows(root / "a" / "samples.jsonl", [sample(1, "2+2=", HOSTILE, "wrong"), sample(5, "2+2=", "It is 4")])
    (tmp_path / "secret.json").write_text("[]")
    return root


def ask(root, *requests):
    """Status, headers and body of each request (a path, or a path and a JSON body), to one server."""

    async def talk():
        async with TestClient(TestServer(Dashboard(root).app())) as client:
            found = []
            for request in requests:
                path, body = request if isinstance(request, tuple) else (request, None)
                method = client.get(path) if body is None else client.post(path, json=body)
                response = await method
                found.append((response.status, response.headers, await response.read()))
            return found

    return asyncio.run(talk())


def refresh(index):
    async def once():
        index._refreshed = -1e9
        await index.refresh()
        await asyncio.gather(*index._loads.values())
        await index.close()

    asyncio.run(once())


def test_only_whole_new_lines_are_read(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"one\ntw")
    first = read_new(path, START)
    path.write_bytes(b"one\ntwo\n")
    second = read_new(path, first.tail)
    assert (first.data, second.data, second.restarted) == (b"one\n", b"two\n", False)
    assert read_new(path, second.tail).data == b""


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_was_rewritten_is_read_anew(tmp_path, in_place):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [row(s) for s in range(1, 10)])
    tail = read_new(path, START).tail
    if in_place:
        write_rows(path, [row(s, entropy=2.0) for s in range(1, 10)])
    else:
        truncate_after(path, 4)
        write_rows(path, [row(s, entropy=2.0) for s in range(5, 12)], "a")
    new = read_new(path, tail)
    assert new.restarted
    assert new.data == path.read_bytes()


def test_the_index_follows_a_run_through_a_resume(runs):
    index = RunIndex(runs)
    refresh(index)
    assert list(index.runs) == ["a", "deep/b"]
    run, seen = index.runs["a"], index.version
    write_rows(run.metrics_file, [row(6)], "a")
    refresh(index)
    assert run.columns.values["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert [r.id for r in index.changed_since(seen)] == ["a"]
    truncate_after(run.metrics_file, 2)
    refresh(index)
    assert run.columns.values["step"].tolist() == [1, 2]


def test_a_long_file_is_looked_at_and_then_read_whole(tmp_path):
    path = tmp_path / "runs" / "long" / "metrics.jsonl"
    write_rows(path, [row(s, **{f"metric/{i}": 0.5 for i in range(20)}) for s in range(1, 2001)])
    steps = peek(path, 50).values["step"]
    assert steps[0] == 1
    assert steps[-1] == 2000
    assert 45 < len(steps) <= 51
    assert (np.diff(steps) > 0).all()
    index = RunIndex(path.parents[1])
    refresh(index)
    assert index.runs["long"].complete
    assert index.runs["long"].columns.rows == load(path)[0].rows == 2000


def test_state_is_by_steps_and_by_when_it_was_written(runs):
    os.utime(runs / "deep" / "b" / "metrics.jsonl", (1e9, 1e9))
    index = RunIndex(runs)
    refresh(index)
    assert index.runs["a"].summary()["state"] == "finished"
    assert index.runs["deep/b"].summary()["state"] == "stopped"
    write_rows(runs / "deep" / "b" / "metrics.jsonl", [row(4)], "a")
    refresh(index)
    assert index.runs["deep/b"].summary()["state"] == "running"


def test_damaged_lines_and_odd_values_are_counted_or_missing():
    found = parse_rows(
        [b'{"step": 1, "x": null}', b"{", b'{"x": 2}', b'{"step": 2, "x": "text"}', b'{"step": 3, "x": 4.5}']
    )
    assert found.skipped == 2
    np.testing.assert_array_equal(found.values["x"], [np.nan, np.nan, 4.5])


def test_alerts_are_stretches_of_steps(runs):
    write_rows(runs / "a" / "metrics.jsonl", [row(s, **{"alert/reward": float(s in (2, 3, 5))}) for s in range(1, 6)])
    index = RunIndex(runs)
    refresh(index)
    assert index.runs["a"].alerts() == {"reward": [[2, 3], [5, 5]]}


def test_bins_keep_every_extreme():
    rng = np.random.default_rng(0)
    x, y = np.arange(10_000.0), rng.normal(size=10_000)
    y[rng.integers(10_000, size=500)] = np.nan
    grid = make_grid(0, 9999, 400, whole=True)
    mean, low, high, number = binned(x, y, grid)
    parts = [y[i * 25 : (i + 1) * 25] for i in range(400)]
    assert grid == (0, 25, 400)
    np.testing.assert_allclose(mean, [np.nanmean(part) for part in parts], rtol=1e-5)
    np.testing.assert_allclose(low, [np.nanmin(part) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(high, [np.nanmax(part) for part in parts], rtol=1e-6)
    assert number.sum() == np.isfinite(y).sum()


def test_series_come_on_one_grid_for_all_runs(runs):
    wanted = {"metrics": ["reward/mean", "entropy"], "runs": ["a", "deep/b"], "axis": "step"}
    [(status, _, body)] = ask(runs, ("/api/series", wanted))
    size = struct.unpack("<I", body[:4])[0]
    header = json.loads(body[4 : 4 + size])
    values = np.frombuffer(body[4 + size :], "<f4").reshape(3, 4, header["number"])
    assert status == 200
    assert [chart["runs"] for chart in header["charts"]] == [[0, 1], [1]]
    np.testing.assert_allclose(values[0, 0], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    np.testing.assert_allclose(values[1, 0], [0.1, 0.2, 0.3, np.nan, np.nan], rtol=1e-6)


def test_nothing_outside_the_folder_is_served(runs, tmp_path):
    write_rows(tmp_path / "outside" / "metrics.jsonl", [row(1)])
    (runs / "link").symlink_to(tmp_path / "outside")
    (runs / "c").mkdir()
    (runs / "c" / "metrics.jsonl").symlink_to(tmp_path / "outside" / "metrics.jsonl")
    (runs / "a" / "trace.json").symlink_to(tmp_path / "secret.json")
    found = ask(
        runs,
        "/api/runs",
        "/api/trace?run=a",
        "/api/samples?run=../outside",
        "/api/config?run=/etc",
        "/static/..%2Fapp.py",
        ("/api/series", {"metrics": ["reward/mean"], "runs": ["../outside"]}),
    )
    assert json.loads(found[0][2])["ids"] == ["a", "deep/b"]
    assert [status for status, _, _ in found[1:]] == [404] * 5


def test_requests_are_refused_with_what_is_wrong_with_them(runs):
    found = ask(runs, "/api/samples?run=a&page=x", ("/api/series", {"metrics": [], "runs": [], "axis": "moon"}))
    assert [status for status, _, _ in found] == [400, 400]
    assert b"page='x'" in found[0][2]
    assert b"moon" in found[1][2]


def test_other_names_for_this_machine_are_refused(runs):
    async def talk():
        async with TestClient(TestServer(Dashboard(runs).app())) as client:
            return [(await client.get("/api/runs", headers={"Host": h})).status for h in ("evil.example", "[::1]:80")]

    assert asyncio.run(talk()) == [403, 200]


def test_the_page_allows_only_its_own_scripts(runs):
    first, second = ask(runs, "/", "/")
    policy = first[1]["Content-Security-Policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert f'nonce="{nonce}"'.encode() in first[2]
    assert first[2] != second[2]


def test_samples_are_filtered_and_hostile_text_stays_text(runs):
    (_, headers, body), wrong, text = ask(
        runs, "/api/samples?run=a", "/api/samples?run=a&verdict=wrong", "/api/samples?run=a&text=IT%20IS"
    )
    found = json.loads(body)
    assert headers["Content-Type"].startswith("application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert (found["total"], found["steps"], found["verdicts"]) == (2, [1, 5], ["right", "wrong"])
    assert json.loads(wrong[2])["rows"][0]["completion"] == HOSTILE
    assert [r["step"] for r in json.loads(text[2])["rows"]] == [5]


def test_samples_of_a_resumed_run_are_indexed_anew(runs):
    index = SampleIndex(runs / "a" / "samples.jsonl")
    index.refresh()
    truncate_after(index.path, 1)
    write_rows(index.path, [sample(7, "x", "y", split="train")], "a")
    index.refresh()
    assert [r["step"] for r in index.find(Wanted(), 0)[1]] == [7, 1]
    assert index.find(Wanted(split="train"), 0)[0] == 1


def test_answers_to_the_same_prompt_are_compared(runs):
    index = SampleIndex(runs / "a" / "samples.jsonl")
    write_rows(index.path, [sample(5, "3+1=", "only here")], "a")
    index.refresh()
    found = compare(index, 1, index, 5, "fixed", 0)
    assert (found["common"], found["fixed"], found["broken"]) == (1, 1, 0)
    assert found["pairs"][0]["b"]["completion"] == "It is 4"
    assert compare(index, 1, index, 5, "broken", 0)["pairs"] == []


def test_word_diff_rebuilds_both_texts():
    a, b = "7 times 8 is 54.", "7 times 8 equals 56."
    ops = word_diff(a, b)
    assert ("".join(op[1] for op in ops), "".join(op[2] for op in ops)) == (a, b)
    assert ("equal", "7 times 8 ", "7 times 8 ") in ops
    assert word_diff("a " * 2000, "b") is None


@pytest.mark.parametrize("end", ["]", "", ",", ',\n{"name": "cut of'])
def test_a_trace_is_read_whole_or_cut(tmp_path, end):
    thread = {"name": "thread_name", "ph": "M", "pid": 1, "tid": 2, "args": {"name": "learner-2"}}
    bars = [
        {"name": n, "ph": "X", "cat": "learner", "ts": t, "dur": 5e5, "pid": 1, "tid": 2, "args": {"step": 1}}
        for n, t in (("update", 3e6), ("sync", 4e6))
    ]
    path = tmp_path / "trace.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, [thread, *bars])) + end)
    found = read_bars(path)
    assert found["lanes"] == ["learner-2"]
    assert [found["names"][i] for i in found["name"]] == ["update", "sync"]
    assert (found["start"], found["seconds"]) == ([0.0, 1.0], [0.5, 0.5])
