"""Figures from rows made by hand."""

from __future__ import annotations

import pytest
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.target import Target
from layered_sglang.bench.summary import attainment, metrics, percentile, summarise
from layered_sglang.bench.table import as_markdown, as_text, points, table

TARGET = Target(1.0, 100.0)


def row(ttft=0.5, itls=(0.05, 0.05), error="", run=0, prompt=10):
    return {
        "run": run,
        "prompt_tokens": prompt,
        "output_tokens": 0 if ttft is None else 1 + len(itls),
        "ttft_s": ttft,
        "itls_s": list(itls),
        "e2e_s": None if ttft is None else ttft + sum(itls),
        "error": error,
    }


def test_percentile_is_numpy_s():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([4.0, 1.0, 3.0, 2.0], 90) == pytest.approx(3.7)
    assert percentile([7.0], 99) == 7.0


def test_a_request_counts_if_ttft_and_every_itl_keep_the_target():
    assert attainment([row()], TARGET) == 1
    assert attainment([row(ttft=1.0, itls=(0.1, 0.1))], TARGET) == 1, "at the target is within it"
    assert attainment([row(ttft=1.01)], TARGET) == 0
    assert attainment([row(itls=(0.01, 0.11, 0.01))], TARGET) == 0, "one slow token of many"
    assert attainment([row(itls=())], TARGET) == 1, "one token has no ITL"
    assert attainment([row(error="HTTP 500")], TARGET) == 0, "fast, but not answered whole"
    assert attainment([row(ttft=None, itls=(), error="no")], TARGET) == 0
    assert attainment([row(), row(ttft=2.0), row(), row()], TARGET) == 0.75
    assert attainment([], TARGET) == 0


def test_short_prompts_have_a_ttft_of_their_own_where_the_scenario_says_what_is_short():
    rows = [row(0.1, prompt=999), row(0.3, prompt=10), row(5.0, prompt=1000)]
    values = metrics(rows, 4.0, short_prompt_tokens=1000)
    assert values["mean_ttft_ms: short prompts"] == pytest.approx(200)
    assert values["max_ttft_ms: short prompts"] == pytest.approx(300)
    assert not any("short" in name for name in metrics(rows, 4.0))
    cells = table(summarise(rows, [run(0, "a")], [], 1000), HERE)
    assert ["TTFT mean, ms short prompts", "200"] in cells


def test_metrics_have_sglang_s_names_and_units():
    rows = [row(0.5, (0.05, 0.15)), row(1.5, (0.1,), prompt=30), row(None, (), "refused")]
    values = metrics(rows, duration=4.0, targets=[TARGET], energy=90.0)
    assert values["completed"] == 2
    assert values["requests"] == 3
    assert values["request_throughput"] == 0.5
    assert (values["total_input"], values["total_output"]) == (40, 5)
    assert values["output_throughput"] == 1.25
    assert values["mean_ttft_ms"] == pytest.approx(1000)
    assert values["median_itl_ms"] == pytest.approx(100)
    assert values["max_itl_ms"] == pytest.approx(150)
    assert values["mean_tpot_ms"] == pytest.approx(100)
    assert values["mean_e2e_latency_ms"] == pytest.approx((700 + 1600) / 2)
    assert values["concurrency"] == pytest.approx(2.3 / 4)
    name = TARGET.name
    assert values[f"attainment: {name}"] == 0
    assert values["mj_per_token"] == pytest.approx(2000)
    assert values["mj_per_output_token"] == pytest.approx(18000)
    assert metrics([row()], 4.0, [TARGET])[f"goodput: {name}"] == 0.25


def test_how_late_a_request_was_sent_is_the_clients_own_doing():
    rows = [row() | {"arrival": 1.0, "sent_s": 1.001}, row() | {"arrival": 2.0, "sent_s": 2.293}]
    assert metrics(rows, 4.0)["max_sent_late_ms"] == pytest.approx(293)
    assert "max_sent_late_ms" not in metrics([row() | {"arrival": 1.0, "sent_s": 0.0}], 4.0)


def test_nothing_answered_leaves_out_the_times():
    values = metrics([row(None, (), "refused")], 1.0, [TARGET], energy=5.0)
    assert values["completed"] == 0
    assert "mean_ttft_ms" not in values
    assert "mj_per_token" not in values


HERE = Point("", None)


def run(number, system, repeat=0, rate=None, workload="", **more):
    return {
        "run": number,
        "system": system,
        "workload": workload,
        "repeat": repeat,
        "rate": rate,
        "search": None,
        "duration_s": 2.0,
        **more,
    }


def test_repeats_give_median_and_spread_and_cut_off_runs_do_not_count():
    rows = [row(ttft=t, run=n) for n, t in enumerate([1.0, 3.0, 2.0, 9.0])]
    runs = [run(n, "a", n) for n in range(3)]
    (record,) = summarise(rows, runs, [])
    assert (record["system"], record["repeats"]) == ("a", 3)
    assert record["metrics"]["mean_ttft_ms"] == {"median": 2000, "low": 1000, "high": 3000}


def test_the_table_shows_spread_and_difference_to_the_first_system():
    rows = [row(ttft=t, run=n) for n, t in enumerate([1.0, 1.2, 0.4])]
    runs = [run(0, "stock"), run(1, "stock", 1), run(2, "layered", sampled={})]
    summary = summarise(rows, runs, [TARGET])
    cells = table(summary, HERE)
    assert cells[0] == ["", "stock", "layered"]
    assert ["TTFT mean, ms", "1100 (1000 … 1200)", "400  -64%"] in cells
    assert ["within TTFT ≤ 1 s, ITL ≤ 100 ms, %", "50.0 (0.0 … 100.0)", "100.0  +100%"] in cells
    assert as_text(cells)[0].split() == ["stock", "layered"]
    markdown = as_markdown(cells)
    assert markdown[1] == "| --- | --- | --- |"
    assert {line.count("|") for line in markdown} == {4}


def test_a_system_without_answers_has_dashes():
    summary = summarise([row(run=0), row(None, (), "no", run=1)], [run(0, "a"), run(1, "b")], [])
    assert ["TTFT mean, ms", "500", "–"] in table(summary, HERE)


def test_points_are_by_workload_and_rate():
    runs = [run(0, "a", rate=2.0, workload="w"), run(1, "b", rate=1.5), run(2, "a", rate=1.0)]
    runs.append(run(3, "b", rate=1.5, workload="w"))
    assert points(summarise([], runs, [])) == [("w", 1.5), ("w", 2.0), ("", 1.0), ("", 1.5)]


def test_a_table_has_its_own_point_and_no_run_of_a_search():
    rows = [row(ttft=t, run=n) for n, t in enumerate([1.0, 2.0, 3.0, 4.0])]
    runs = [run(0, "a", rate=1.0, workload="v"), run(1, "a", rate=1.0, workload="w")]
    runs += [run(2, "a", rate=1.0, workload="v", search={"target": "", "kept": True})]
    summary = summarise(rows, runs, [])
    assert ["TTFT mean, ms", "1000"] in table(summary, Point("v", 1.0))
    assert ["TTFT mean, ms", "2000"] in table(summary, Point("w", 1.0))
    assert table(summary, HERE) == []


def test_titles_of_points():
    assert Point("arxiv", 2.0).title == "arxiv at 2 requests/s"
    assert (Point("", 2.0).title, Point("arxiv", None).title) == ("at 2 requests/s", "arxiv")
    assert (Point("arxiv", 1.5).suffix, HERE.suffix) == ("-arxiv-1.5", "")
