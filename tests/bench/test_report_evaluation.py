"""The report's tables and pictures of an evaluation: many cells, values varied, the paper beside it."""

from __future__ import annotations

import pytest
from evaluation_results import write_results
from layered_sglang.bench.command import main
from layered_sglang.bench.report.ablation import ablations
from layered_sglang.bench.report.charts import charts
from layered_sglang.bench.report.overview import overview, within_targets
from layered_sglang.bench.report.paper import beside_the_paper, chunks_beside_the_paper
from layered_sglang.bench.report.ratios import ratios
from layered_sglang.bench.report.trade_off import trade_off_charts


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path)


def test_every_cell_is_a_row_of_the_overview(results):
    cells = overview(results)
    assert cells[0] == [
        *("", "runs", "TTFT mean, ms", "P99", "ITL P50, ms", "P99", "max", "E2E mean, s"),
        *("mJ a token", "within TTFT ≤ 2 s, ITL ≤ 50 ms, %", "within TTFT ≤ 10 s, ITL ≤ 125 ms, %"),
    ]
    assert [row[0] for row in cells[1:]] == [
        *("arxiv 1/s stock", "arxiv 1/s slo-40", "arxiv 1/s slo-20", "arxiv 1/s fixed"),
        *("arxiv 2/s stock", "arxiv 2/s slo-40", "arxiv 2/s slo-20", "arxiv 2/s fixed"),
        *("arxiv-shaped stock", "arxiv-shaped fixed", "chat fixed"),
    ]
    # 80 J for ten times twelve tokens.
    assert cells[7] == [
        *("arxiv 2/s slo-20", "1", "1600", "1600", "38.0", "38.0", "38", "3.00", "666.7"),
        *("100", "100"),
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


def test_ratios_are_within_a_repeat(tmp_path):
    results = write_results(tmp_path, repeats=(1.0, 2.0, 4.0))
    heading, *rows = ratios(results)
    assert heading == [
        *(
            "",
            "repeats",
            "TTFT mean",
            "TTFT P99",
            "ITL P50",
            "ITL P99",
            "E2E mean",
            "energy a token",
        )
    ]
    by_name = {row[0]: row[1:] for row in rows}
    # The machine is slower by the same factor for all in a repeat: ratios do not see it.
    assert by_name["arxiv 1/s slo-40 / stock"] == [
        *("3", "0.25", "0.25", "0.95", "0.95", "1.00", "0.25")
    ]
    assert "chat" not in " ".join(by_name), "nothing of SGLang's to compare with"
    table = {row[0]: row for row in overview(results)}
    assert table["arxiv 1/s stock"][1:3] == ["3", "4000 (2000 … 8000)"]


def test_ratios_have_the_pairs_with_the_most_repeats(tmp_path):
    results = write_results(tmp_path, repeats=(1.0, 1.0), missing={("slo-20", 1), ("stock", 9)})
    rows = [row[:2] for row in ratios(results) if row[0].startswith("arxiv 1/s")]
    assert rows == [["arxiv 1/s slo-40 / stock", "2"], ["arxiv 1/s fixed / stock", "2"]]


def test_one_value_varied_is_a_table_in_ascending_order(tmp_path):
    more = "".join(
        f"  groups-{n}: {{on: slo-40, planning: {{num_layer_groups: {n}}}}}\n" for n in (8, 2, 4)
    )
    results = write_results(tmp_path, systems=more)
    heading, *rows = ablations(results)
    assert heading[:2] == ["", "TTFT mean, ms"]
    assert [row[0] for row in rows] == [
        f"arxiv {rate}/s layered by layer groups: {n}" for rate in (1, 2) for n in (2, 4, 8)
    ], "two targets make no table"


def test_longer_chunks_stand_beside_the_paper_s(tmp_path):
    more = "".join(
        f"  mixed-{n}: {{server: stock, flags: --chunked-prefill-size {n} --enable-mixed-chunk}}\n"
        for n in (512, 2048)
    )
    results = write_results(tmp_path, systems=more, experts={"prompts": 30, "decode": 10})
    heading, *rows = chunks_beside_the_paper(results)
    assert heading == ["", "the paper", "change", "arxiv 1/s", "arxiv 2/s"]
    assert rows[0] == [
        *("chunks 512 → 2048: expert weights a request", "955 → 304 GB", "-68%", "+0%", "+0%")
    ]
    assert [row[2] for row in rows[1:]] == ["-46%", "+169%"]
    assert chunks_beside_the_paper(write_results(tmp_path / "b")) == []


def test_expert_weights_are_drawn_per_request(tmp_path):
    results = write_results(tmp_path, experts={"prompts": 30, "decode": 10})
    drawn = {chart.name: chart for chart in charts(results)}
    chart = drawn["experts-arxiv"]
    assert len(chart.boxes) == 2 * 8, "two rates, four systems"
    # Ten requests a run: 3 GB each with prompts, on top of them 1 GB of decode alone.
    assert {(box.y0, box.y1) for box in chart.boxes} == {(0.0, 3.0), (3.0, 4.0)}
    assert [text for _, text in chart.x_ticks] == ["arxiv 1/s", "arxiv 2/s"]
    assert "expert weights, GB a request" in overview(results)[0]


def test_the_tables_alone(results, tmp_path, capsys):
    target = tmp_path / "tables.md"
    command = ["report", str(results.folder), "--tables", str(target)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    text = target.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        *("What was measured", "Overview", "Layered prefill over SGLang's settings"),
        *("Rates within the targets", "Beside the paper", "Machine and versions", "Commands"),
    ]
    assert "| arxiv 1/s slo-40 / stock | 1 | 0.25 |" in text
    assert "![" not in text, "no pictures"
    assert not (results.folder / "report.md").exists()
    assert main([*command[:-1], str(tmp_path / "none" / "tables.md")]) == 2
    assert "cannot write" in capsys.readouterr().err


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
    for title in (
        "## Overview",
        "## Rates within the targets",
        "## Beside the paper",
        "## Layered prefill ov",
    ):
        assert title in text
