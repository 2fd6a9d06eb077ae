"""The report's tables and pictures of an evaluation: many cells, values varied, the paper beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layered_sglang.bench.command import main
from layered_sglang.bench.report.data import read_results
from layered_sglang.bench.report.overview import overview, within_targets
from layered_sglang.bench.report.paper import beside_the_paper
from layered_sglang.bench.report.trade_off import trade_off_charts
from layered_sglang.bench.scenario import load_scenario
from layered_sglang.bench.store import Store

SCENARIO = """\
name: evaluation
model: {preset: qwen3-30b-a3b}
systems:
  stock: {flags: --chunked-prefill-size 512}
  slo-40: {server: layered, flags: --itl-slo-ms 40}
  slo-20: {on: slo-40, planning: {itl_slo_ms: 20}}
  fixed: {on: slo-40, planning: {layer_group_policy: fixed}}
workloads:
  arxiv: &lengths {prompt_tokens: 9, output_tokens: 3, arrivals: {poisson: {rate: 1}}, requests: 10}
  arxiv-shaped: *lengths
  chat:
    prompt_tokens: {mixture: [[0.9, {uniform: [1, 9]}], [0.1, 99]]}
    output_tokens: 3
    arrivals: {poisson: {rate: 1}}
    requests: 10
cells:
  - {workload: arxiv, rates: [1, 2]}
  - {workload: arxiv-shaped, systems: [stock, fixed]}
  - {workload: chat, systems: [fixed]}
targets: [{ttft_s: 2, itl_ms: 50}, {ttft_s: 9, itl_ms: 500}]
"""
#: system -> TTFT (s) and ITL (ms) at a rate of 1; both grow with the rate.
TIMES = {"stock": (2.0, 40), "slo-40": (0.5, 38), "slo-20": (0.8, 19), "fixed": (1.0, 20)}


@pytest.fixture
def results(tmp_path: Path):
    path, out = tmp_path / "s.yaml", tmp_path / "out"
    path.write_text(SCENARIO)
    scenario, store = load_scenario(path), Store(out)
    store.open(scenario, path, "bench run")
    for number, cell in enumerate(scenario.cells):
        ttft, itl = TIMES[cell.system]
        rate = cell.rate or 1.0
        where = {"system": cell.system, "workload": cell.workload, "repeat": 0, "rate": cell.rate}
        run = {
            **{"run": number, **where, "search": None, "duration_s": 10.0, "energy_j": 100 * ttft},
            **{"began": "2026-01-02T03:04:05+00:00", "monotonic": [0.0, 1.0], "trace": None},
            "warm_up": {},
        }
        store.append("runs.jsonl", json.dumps(run))
        for index in range(10):
            row = {
                **{"run": number, **where, "index": index, "prompt_tokens": 9, "output_tokens": 3},
                **{"ttft_s": ttft * rate, "itls_s": [itl * rate / 1000] * 2, "e2e_s": 3.0},
                "error": "",
            }
            store.append("rows.jsonl", json.dumps(row))
    machine = {"gpus": [], "cpu": "C", "cores": 2, "memory_gib": 3, "python": "3", "packages": {}}
    store.write("systems.json", {"machine": machine, "systems": {}})
    return read_results(out)


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
        ["highest rate measured within", "TTFT ≤ 2 s, ITL ≤ 50 ms", "TTFT ≤ 9 s, ITL ≤ 500 ms"],
        ["arxiv stock", "1/s", "≥ 2/s"],
        ["arxiv slo-40", "1/s", "≥ 2/s"],
        ["arxiv slo-20", "≥ 2/s", "≥ 2/s"],
        ["arxiv fixed", "≥ 2/s", "≥ 2/s"],
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
