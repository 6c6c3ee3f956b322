"""The HTML report: complete, self-contained, and safe whatever the model wrote."""

import json
import re
from html.parser import HTMLParser

import pytest

from deltarl.rl import report
from deltarl.rl.metrics import metric_doc
from deltarl.rl.report import main, write_report
from deltarl.rl.report_charts import MAX_POINTS, build_charts
from deltarl.rl.report_panels import PANELS, WARM_START
from deltarl.rl.report_tiles import build_tiles

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- {{ 7*7 }} \u2028 \ud83d &amp; ]]>"


class PageParser(HTMLParser):
    """Collects what a browser would see: elements with attributes, and the text of script elements by id."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = []
        self.scripts = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1][1] += data
        else:
            self.text.append(data)

    def json(self, script_id):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == script_id))


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """A stand-in for the 4.8 MB of plotly.js, which no test but one needs."""
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "/* plotly.js */")


def metrics_row(step):
    """A row with every metric the report draws, all plausible for a run that learns."""
    row = {"step": step, "reward/mean": 0.1 * step, "reward/std": 0.3, "time/step": 2.0, "worker/restarts": 1}
    row |= {"reward/math/mean": 0.1 * step, "reward/format/mean": 0.5, "tokens/completion": 1000}
    row |= {name: 0.25 for panel in PANELS for name in panel.lines}
    if step % 2 == 1:
        row |= {"eval/pass@1": 0.2 + 0.1 * step, "eval/pass@16": 0.4 + 0.1 * step}
    return row


def sample_row(step=1, completion="\\boxed{2}", **changes):
    row = {"step": step, "split": "train", "prompt": "1 + 1?", "completion": completion, "gold": "2", "score": 1.0}
    row |= {"kind": "right", "extracted": "2", "seconds": 0.01, "finish_reason": "stop", "weight_version": 0}
    return row | {"group": 0} | changes


def write_run(run_dir, rows, samples=(), config=None, sft=()):
    for path, content in (("metrics.jsonl", rows), ("samples.jsonl", samples), ("sft/metrics.jsonl", sft)):
        if content or path == "metrics.jsonl":
            (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
            (run_dir / path).write_text("".join(json.dumps(row) + "\n" for row in content))
    if config is not None:
        (run_dir / "config.yaml").write_text(config)
    return run_dir


def parse(run_dir):
    page = PageParser()
    page.feed(write_report(run_dir).read_text(encoding="utf-8"))
    page.close()
    return page


def test_full_run_has_every_part(tmp_path):
    run = write_run(
        tmp_path / "run",
        [metrics_row(step) for step in range(1, 6)],
        [sample_row(1), sample_row(5, kind="wrong", extracted=None)],
        config="name: first-light\nmodel: {layers: 4}\n",
        sft=[{"step": 1, "sft/loss": 2.0, "sft/token_accuracy": 0.4}],
    )
    page = parse(run)
    text = "".join(page.text)
    for title in ("Reward", "Held-out accuracy", *(panel.title for panel in PANELS), WARM_START.title):
        assert title in text
    assert "first-light" in text
    assert "model: {layers: 4}" in text
    assert re.search(r"30\.0%\s*70\.0%", text)  # held-out accuracy, first and last
    assert re.search(r"0\.100\s*0\.500", text)  # reward, first and last
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == len(page.json("figure-data")) == len(PANELS) + 3
    assert [sample["step"] for sample in page.json("sample-data")] == [5, 1]
    assert metric_doc("kl/ref").description in text


def test_page_loads_nothing_and_holds_plotly(tmp_path, monkeypatch):
    monkeypatch.undo()
    html = write_report(write_run(tmp_path, [metrics_row(1)], [sample_row()])).read_text(encoding="utf-8")
    assert "plotly.js v" in html
    assert len(html) < 6_000_000
    page = PageParser()
    page.feed(html)
    loading = [
        (tag, a) for tag, a in page.elements if "src" in a or (tag == "link") or (tag == "a" and "://" in a["href"])
    ]
    assert loading == []
    own_parts = "".join(text for attributes, text in page.scripts if "plotly.js v" not in text)
    assert not re.search(r"https?://", own_parts + "".join(page.text))
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_only_scripts_with_the_nonce_of_the_policy_may_run(tmp_path):
    page = parse(write_run(tmp_path, [metrics_row(1)], [sample_row()]))
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    nonce = re.search(r"script-src 'nonce-([\w-]+)';", policy)[1]
    assert [a["nonce"] for a, _ in page.scripts if a.get("type") != "application/json"] == [nonce, nonce]


def test_hostile_text_stays_text(tmp_path):
    harmless = write_run(tmp_path / "a", [metrics_row(1)], [sample_row()], config="name: x\n")
    hostile = write_run(
        tmp_path / "b",
        [metrics_row(1)],
        [sample_row(completion=HOSTILE, prompt=HOSTILE, gold=HOSTILE, extracted=HOSTILE, kind=HOSTILE)],
        config=f"name: {json.dumps(HOSTILE)}\n",
    )
    page = parse(hostile)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in parse(harmless).elements]
    sample = page.json("sample-data")[0]
    assert all(sample[key] == HOSTILE for key in ("completion", "prompt", "gold", "extracted", "kind"))
    raw = (hostile / "report.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in raw
    assert "<img" not in raw


def test_the_script_never_parses_html(tmp_path):
    page = parse(write_run(tmp_path, [metrics_row(1)], [sample_row()]))
    code = page.scripts[-1][1]
    assert "textContent" in code
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", code)


@pytest.mark.parametrize("text", ["- a list\n", "broken: [yaml\n", "name: 3\n"])
def test_config_that_names_no_run_falls_back_to_the_folder(tmp_path, text):
    page = parse(write_run(tmp_path / "my-run", [metrics_row(1)], config=text))
    assert "my-run" in "".join(page.text)
    assert text.strip() in "".join(page.text)


def test_charts_without_data_are_left_out():
    rows = [{"step": 1, "entropy": 2.0, "kl/ref": None}, {"step": 2, "entropy": 1.5, "kl/ref": None}]
    (chart,) = build_charts(rows, [])
    assert chart.title == "Entropy"
    assert list(chart.docs) == ["entropy"]
    assert [tile.label for tile in build_tiles(rows)] == ["Steps"]


def test_run_with_metrics_only(tmp_path):
    page = parse(write_run(tmp_path, [{"step": 7, "entropy": 2.0}]))
    assert page.json("sample-data") == []
    assert not [a for _, a in page.elements if a.get("id") in ("samples", "configuration")]


def test_one_step_draws_points_and_bars():
    charts = {chart.title: chart.figure for chart in build_charts([metrics_row(1)], [])}
    assert len(charts) == len(PANELS) + 2
    assert charts["Verdicts"].data[0].type == "bar"
    assert "markers" in charts["Held-out accuracy"].data[0].mode
    assert "markers" in charts["Entropy"].data[0].mode


def test_missing_values_are_gaps_in_lines_and_zero_in_stacks():
    rows = [{"step": s, "entropy": 1.0, "time/rollout": 2.0} for s in (1, 2, 3)]
    rows[1] |= {"entropy": None, "time/eval": 5.0}
    charts = {chart.title: chart.figure for chart in build_charts(rows, [])}
    assert charts["Entropy"].data[0].y == (1.0, None, 1.0)
    assert {trace.name: trace.y for trace in charts["Time per phase"].data}["evaluation"] == (0.0, 5.0, 0.0)


def test_a_run_ahead_of_its_learner_shows_how_old_its_tokens_are_and_a_synchronous_one_has_nothing_to_show():
    rows = [{"step": 1, "staleness/frac/0": 1.0}, {"step": 2, "staleness/frac/0": 0.75, "staleness/frac/1": 0.25}]
    assert not build_charts(rows[:1], [])
    (chart,) = build_charts(rows, [])
    assert chart.figure.data[0].y == (0.25,)
    assert chart.docs["staleness/frac/1"].unit == "fraction"


def test_mismatch_is_on_a_log_axis_unless_it_is_exactly_zero():
    def axis(*values):
        rows = [{"step": i, "mismatch/logprob_abs_max": value} for i, value in enumerate(values)]
        return build_charts(rows, [])[0].figure

    some = axis(0.0, 2e-6, 5e-5)
    assert some.layout.yaxis.type == "log"
    assert some.layout.yaxis.range == (-6, -4)
    assert some.data[0].y == (None, 2e-6, 5e-5)
    assert axis(1e-6).layout.yaxis.range == (-6, -5)
    assert axis(0.0, 0.0).layout.yaxis.type is None
    assert axis(0.0, 0.0).data[0].y == (0.0, 0.0)


def test_reward_band_is_mean_plus_minus_std_and_long_runs_are_smoothed():
    rows = [{"step": s, "reward/mean": float(s % 2), "reward/std": 0.25} for s in range(60)]
    low, high, raw, smooth = build_charts(rows, [])[0].figure.data
    assert (low.y[:2], high.y[:2], raw.y[:2]) == ((-0.25, 0.75), (0.25, 1.25), (0.0, 1.0))
    assert high.fill == "tonexty"
    assert all(0.3 < y < 0.7 for y in smooth.y[10:])
    assert smooth.y[0] == raw.y[0]


def test_long_curves_are_thinned_but_keep_the_newest_step():
    rows = [{"step": s, "entropy": float(s)} for s in range(10 * MAX_POINTS + 7)]
    (trace,) = build_charts(rows, [])[0].figure.data
    assert len(trace.x) <= MAX_POINTS
    assert trace.x[-1] == rows[-1]["step"]


def test_pass_at_k_curves_are_in_order_of_k_and_the_tile_takes_the_smallest():
    rows = [{"step": s, "eval/pass@16": 0.9, "eval/pass@2": 0.2 * s, "eval/pass@8": 0.5} for s in (1, 2)]
    more = {
        "eval/pass@1": 0.3,
        "eval/pass@1/low": 0.2,
        "eval/pass@1/high": 0.4,
        "eval/maj@4": 0.5,
        "eval/amc/pass@1": 0.1,
    }
    (chart, *_) = build_charts([row | more for row in rows], [])
    names = ["pass@1", "pass@2", "pass@8", "pass@16", "maj@4", "amc/pass@1", "pass@1/low", "pass@1/high"]
    assert [trace.name for trace in chart.figure.data] == names
    assert [trace.name for trace in build_charts(rows, [])[0].figure.data] == ["pass@2", "pass@8", "pass@16"]
    tile = build_tiles(rows)[0]
    assert (tile.before, tile.value, tile.tone) == ("20.0%", "40.0%", "good")


def test_tiles_report_extremes_and_totals():
    rows = [
        {"step": 1, "mismatch/logprob_abs_max": 1e-6, "worker/restarts": 0},
        {"step": 2, "mismatch/logprob_abs_max": 3e-4, "worker/restarts": 2},
        {"step": 3, "mismatch/logprob_abs_max": 1e-6, "worker/restarts": 2},
    ]
    rows = [row | {"time/step": 1800.0, "tokens/completion": 600} for row in rows]
    values = {tile.label: tile.value for tile in build_tiles(rows)}
    assert values == {
        "Steps": "3",
        "Wall time": "1 h 30 min",
        "Sampled tokens": "1.8 k",
        "Sampler to learner": "0.0003",
        "Worker restarts": "2",
    }


def test_step_logged_in_parts_and_out_of_order_is_one_row(tmp_path):
    rows = [{"step": 2, "entropy": 1.0}, {"step": 1, "entropy": 2.0}, {"step": 2, "eval/pass@1": 0.5}]
    (held_out, entropy) = parse(write_run(tmp_path, rows)).json("figure-data")
    assert held_out["data"][0]["x"] == [2]
    assert (entropy["data"][0]["x"], entropy["data"][0]["y"]) == ([1, 2], [2.0, 1.0])


def test_unfinished_run_with_half_written_lines(tmp_path):
    run = write_run(tmp_path, [metrics_row(1), metrics_row(2)], [sample_row(1)])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 3, "ent')
    page = parse(run)
    assert len(page.json("sample-data")) == 1
    assert "2 steps in metrics.jsonl" in "".join(page.text)


def test_samples_are_capped_evenly_over_steps_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_SAMPLES", 12)
    samples = [sample_row(step, f"{step}/{i}") for step in (1, 2, 3) for i in range(10)]
    page = parse(write_run(tmp_path, [metrics_row(1)], samples))
    shown = [sample["completion"] for sample in page.json("sample-data")]
    assert shown == [f"{step}/{i}" for step in (3, 2, 1) for i in range(4)]
    assert re.search(r"12 of 30\s+logged completions", "".join(page.text))


def test_samples_are_capped_by_size_too(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_SAMPLES_CHARS", 10_000)
    samples = [sample_row(step, "<" * 200) for step in range(50)]
    page = parse(write_run(tmp_path, [metrics_row(1)], samples))
    steps = [sample["step"] for sample in page.json("sample-data")]
    assert steps == list(range(49, 49 - len(steps), -1))
    assert 3 < len(steps) < 10  # "<" takes six characters in the page


def test_very_long_text_keeps_its_ends(tmp_path):
    page = parse(write_run(tmp_path, [metrics_row(1)], [sample_row(completion="a" * 50_000 + "\\boxed{2}")]))
    completion = page.json("sample-data")[0]["completion"]
    assert len(completion) < 21_000
    assert completion.startswith("aaa")
    assert completion.endswith("\\boxed{2}")
    assert "characters left out" in completion


def test_command_line_writes_what_it_can_and_explains_the_rest(tmp_path, capsys):
    good = write_run(tmp_path / "good", [metrics_row(1)])
    empty = write_run(tmp_path / "empty", [])
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "none"), str(empty), str(good)])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out.strip() == str(good / "report.html")
    assert (good / "report.html").is_file()
    assert "none has no metrics.jsonl" in err
    assert "has no rows yet" in err


def test_row_without_a_step_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r'metrics\.jsonl: a row has no "step"'):
        write_report(write_run(tmp_path, [{"step": 1, "entropy": 1.0}, {"entropy": 2.0}]))
