"""The report's tables and pictures of an evaluation: many cells, values varied, the paper beside it."""

from __future__ import annotations

import pytest
from evaluation_results import write_results
from layered_sglang.bench.command import main
from layered_sglang.bench.report.overview import overview, within_targets
from layered_sglang.bench.report.paper import beside_the_paper
from layered_sglang.bench.report.trade_off import trade_off_charts


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path)


def test_every_cell_is_a_row_of_the_overview(results):
    cells = overview(results)
    assert cells[0] == [
        *("", "TTFT mean, ms", "P99", "ITL P50, ms", "P99", "max", "E2E mean, s", "mJ a token"),
        "within TTFT ≤ 2 s, ITL ≤ 50 ms, %",
    ]
    assert [row[0] for row in cells[1:]] == [
        *("arxiv 1/s stock", "arxiv 1/s slo-40", "arxiv 1/s slo-20", "arxiv 1/s fixed"),
        *("arxiv 2/s stock", "arxiv 2/s slo-40", "arxiv 2/s slo-20", "arxiv 2/s fixed"),
        *("arxiv-shaped stock", "arxiv-shaped fixed", "chat fixed"),
    ]
    # 80 J for ten times twelve tokens.
    assert cells[7] == [
        *("arxiv 2/s slo-20", "1600", "1600", "38.0", "38.0", "38", "3.00", "666.7", "100")
    ]


def test_the_highest_rate_within_each_target(results):
    assert within_targets(results) == [
        ["highest rate measured within", "TTFT ≤ 2 s, ITL ≤ 50 ms", "TTFT ≤ 10 s, ITL ≤ 125 ms"],
        ["arxiv stock", "1/s", "≥ 2/s"],
        ["arxiv slo-40", "1/s", "≥ 2/s"],
        ["arxiv slo-20", "≥ 2/s", "≥ 2/s"],
        ["arxiv fixed", "≥ 2/s", "≥ 2/s"],
        ["arxiv, the paper: chunked → layered", "", "1.3 → 1.6/s (56.6 → 44.2 mJ a token)"],
    ]


def test_one_value_varied_is_a_line_of_the_trade_off(results):
    charts = {chart.name: chart for chart in trade_off_charts(results)}
    assert list(charts) == ["trade-off-arxiv-1", "trade-off-arxiv-2", "trade-off-arxiv-shaped"]
    series = {s.name: (s.points, s.labels) for s in charts["trade-off-arxiv-1"].series}
    assert series == {
        "stock": ([(2.0, 40.0)], ["stock"]),
        "layered, by ITL target, ms": ([(0.8, 19.0), (0.5, 38.0)], ["20", "40"]),
        "fixed": ([(1.0, 20.0)], ["fixed"]),
    }


def test_changes_stand_beside_the_paper_s(results):
    heading, *rows = beside_the_paper(results)
    assert heading == [
        *("", "the paper", "change", "slo-40, arxiv 1/s", "slo-20, arxiv 1/s", "fixed, arxiv 1/s"),
        *("slo-40, arxiv 2/s", "slo-20, arxiv 2/s", "fixed, arxiv 2/s", "fixed, arxiv-shaped"),
    ]
    by_name = {row[0]: row[1:] for row in rows}
    ttft = by_name["arxiv: TTFT mean, at 1.3/s"]
    assert ttft[:2] == ["2.80 → 1.24 s", "-56%"]
    assert ttft[2:] == ["-75%", "-60%", "-50%", "-75%", "-60%", "-50%", "-50%"]
    assert by_name["arxiv: TBT P99, at 1.3/s"][1:4] == ["-27%", "-5%", "-52%"]


def test_one_picture_alone(results, tmp_path, capsys):
    target = tmp_path / "picture.svg"
    command = ["report", str(results.folder), "--picture"]
    assert main([*command, "trade-off-arxiv-1", str(target)]) == 0
    assert target.read_text().startswith("<svg")
    assert not (results.folder / "report.html").exists()
    assert main([*command, "trade-off", str(target)]) == 2
    assert "has no picture 'trade-off'; there are: cdf-ttft-arxiv-1, " in capsys.readouterr().err
    assert main(["report", str(results.folder)]) == 0
    text = (results.folder / "report.md").read_text()
    assert "chat: Lengths: prompt 90% low 1, high 9 + 10% tokens 99; output tokens 3" in text
    for title in ("## Overview", "## Rates within the targets", "## Beside the paper"):
        assert title in text
