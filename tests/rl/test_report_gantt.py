"""The report's timeline: a row for each worker, a bar for each call, in the time they took."""

from deltarl.rl.report_charts import build_charts
from deltarl.rl.report_gantt import KIND_OF, KINDS, MAX_SPANS, MAX_WORKERS, gantt_figure
from deltarl.rl.trace import Span

SPANS = [
    Span("rollout-10", "generate", 4, 100.0, 103.0),
    Span("rollout-2", "generate", 4, 100.5, 101.0),
    Span("driver-0", "wait_rollout", 4, 99.5, 103.0),
    Span("learner-0", "update", 4, 103.0, 104.25),
    Span("driver-0", "step", 4, 99.5, 104.5),
    Span("critic-0", "judge", 4, 103.0, 104.0),
]


def test_a_bar_for_each_span_in_rows_by_fleet_and_number():
    figure = gantt_figure(SPANS)
    assert figure.layout.yaxis.categoryarray == ("driver-0", "learner-0", "rollout-2", "rollout-10", "critic-0")
    bars = {
        (trace.name, y): (base, x)
        for trace in figure.data
        for y, base, x in zip(trace.y, trace.base, trace.x, strict=True)
    }
    assert bars == {
        ("sampling", "rollout-10"): (0.5, 3.0),
        ("sampling", "rollout-2"): (1.0, 0.5),
        ("waiting", "driver-0"): (0.0, 3.5),
        ("learning", "learner-0"): (3.5, 1.25),
        ("other", "critic-0"): (3.5, 1.0),
    }
    assert [a.text for a in figure.layout.annotations] == ["step 4"]
    assert set(KIND_OF.values()) < set(KINDS)


def test_a_large_run_is_cut_to_what_a_page_holds():
    many = [Span(f"rollout-{i % 60}", "generate", 1, float(i), i + 1.0) for i in range(3 * MAX_SPANS)]
    figure = gantt_figure(many)
    assert len(figure.layout.yaxis.categoryarray) == MAX_WORKERS
    assert sum(len(trace.x) for trace in figure.data) <= MAX_SPANS


def test_without_a_trace_there_is_no_timeline():
    assert gantt_figure([]) is None
    titles = [chart.title for chart in build_charts([{"step": 1, "reward/mean": 0.5}], [], SPANS)]
    assert titles == ["Reward", "Timeline"]
