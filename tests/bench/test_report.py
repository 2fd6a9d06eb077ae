"""The report of results made by hand: what it says, and that its pictures are sound."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest
from layered_sglang.bench.command import main
from layered_sglang.bench.report.chart import Box, Chart, Series, log_ticks, ticks
from layered_sglang.bench.report.data import read_results
from layered_sglang.bench.report.iterations import busiest, read_iterations
from layered_sglang.bench.report.svg import svg
from layered_sglang.bench.spec.scenario import find_scenario, load_scenario
from layered_sglang.bench.store import Store

RATES = (1.0, 2.0)
SETS = ["rates=[1, 2]", "repeats=2"]


def trace_line(time, prompts=(), layers=None, decode=("d",), **more):
    cohort = [[rid, 0, 700] for rid in prompts]
    kind = "merged" if layers else "prefill" if cohort else "decode"
    record = {"time": time, "kind": kind, "decode": list(decode), "cohort": cohort}
    return {"iteration": 0, **record, "layers": layers, "samples": [], **more}


@pytest.fixture
def folder(tmp_path):
    """Results of stock and layered at two rates, twice each."""
    out = tmp_path / "out"
    store, scenario = Store(out), load_scenario(find_scenario("quick"), SETS)
    store.open(scenario, find_scenario("quick"), "python -m layered_sglang.bench run quick")
    number = 0
    for system, ttft in (("stock", 3.0), ("layered", 0.5)):
        for rate in RATES:
            for repeat in range(2):
                run = {
                    "run": number,
                    "system": system,
                    "repeat": repeat,
                    "rate": rate,
                    "workload": "",
                    "search": None,
                    "began": "2026-01-02T03:04:05+00:00",
                    "duration_s": 10.0,
                    "monotonic": [100.0, 110.0],
                    "trace": "layered-0.jsonl" if system == "layered" else None,
                    "warm_up": {"seconds": [2.0, 1.0], "stable": False},
                    "energy_j": 1000.0 * ttft,
                    "sampled": {"power_w": {"mean": 300.0, "max": 400.0}},
                }
                store.append("runs.jsonl", json.dumps(run))
                for index in range(5):
                    row = {
                        **{"run": number, "system": system, "repeat": repeat, "rate": rate},
                        "workload": "",
                        **{"index": index, "prompt_tokens": 100 + index, "output_tokens": 3},
                        **{"ttft_s": ttft * rate + repeat, "itls_s": [0.02, 0.03 * rate]},
                        **{"e2e_s": 9.0, "error": "HTTP 500: <oops>" if index == 4 else ""},
                    }
                    store.append("rows.jsonl", json.dumps(row))
                number += 1
    trace = [trace_line(99.0, ["warm-up"], [0, 8]), trace_line(100.0)]
    trace += [
        trace_line(100.5 + 0.1 * i, ["p"], [2 * i, 2 * i + 2], seconds=0.05) for i in range(4)
    ]
    (out / "traces" / "layered-0.jsonl").write_text("\n".join(map(json.dumps, trace)) + '\n{"time"')
    store.append("failures.jsonl", json.dumps({"system": "stock", "error": "it <died>"}))
    search = {"system": "layered", "repeat": 0, "workload": "", "target": "T", "rate": 1.75}
    tried = {"1.75": True, "2": False}
    store.append("searches.jsonl", json.dumps({**search, "tried": tried}))
    machine = {"gpus": ["NVIDIA X"], "cpu": "C", "cores": 2, "memory_gib": 3, "python": "3.11"}
    machine["packages"] = {"sglang": "0.5.17"}
    systems = {name: {"command": f"python {name} --flag"} for name in ("stock", "layered")}
    store.write("systems.json", {"machine": machine, "systems": systems})
    return out


def test_the_report_says_what_was_measured(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for content in (page, text):
        assert "Results at 1 requests/s" in content
        assert "Results at 2 requests/s" in content
        assert "python stock --flag" in content
        assert "python -m layered_sglang.make_model tiny DIR" in content.replace("`", "")
        assert "NVIDIA X" in content
        assert "sglang 0.5.17" in content
        assert "Warm-up of stock, layered: 2 rounds, NOT alike at the end" in content
        assert "1.75 yes, 2 no" in content
    # Rate 1, stock: TTFT 3 and 4 s in the two repeats; layered 0.5 and 1.5 s.
    assert "| TTFT mean, ms | 3500 (3000 … 4000) | 1000 (500 … 1500)  -71% |" in text
    # 3000 J for 4 answered requests of 101.5 prompt and 3 output tokens.
    assert "| energy, mJ/token | 7177.0 | 1196.2  -83% |" in text
    assert "it &lt;died&gt;" in page
    assert "<script" not in page and "src=" not in page and "<link" not in page


def test_every_picture_is_there_and_well_formed(folder):
    assert main(["report", str(folder)]) == 0
    expected = {
        *("cdf-ttft-1", "cdf-itl-1", "cdf-ttft-2", "cdf-itl-2", "pareto", "attainment-0"),
        *("energy", "token-timeline", "iterations-layered", "trade-off-1", "trade-off-2"),
    }
    pictures = {path.stem: path for path in (folder / "pictures").glob("*.svg")}
    assert set(pictures) == expected
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for name, path in pictures.items():
        root = ElementTree.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert f"(pictures/{name}." in text
    assert page.count("<svg") == len(expected)


def test_iterations_of_the_run_alone_and_their_times(folder):
    results = read_results(folder)
    run = next(run for run in results.runs if run["system"] == "layered")
    iterations = read_iterations(run)
    assert [i.kind for i in iterations] == ["decode", *["merged"] * 4]
    assert iterations[0].seconds == pytest.approx(0.5), "until the next one was launched"
    assert iterations[1].seconds == 0.05, "as the trace says"
    assert iterations[2].layers == (2, 4)
    assert iterations[2].tokens == 700
    assert len(busiest(iterations)) == 5
    assert busiest(iterations[:1]) == ()


def test_folders_of_one_scenario_make_one_report(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    results = read_results(folder, other)
    assert {record["repeats"] for record in results.summary} == {4}
    assert sorted(run["run"] for run in results.runs) == list(range(16))
    assert len(results.rows) == 80
    assert {r["run"] for r in results.rows} == set(range(16)), "no two runs have one number"
    (other / "traces" / "layered-0.jsonl").unlink()
    traced = [bool(read_iterations(run)) for run in results.runs if run["trace"]]
    assert traced == [True] * 4 + [False] * 4, "each run's trace is in its own folder"
    assert main(["report", str(folder), str(other)]) == 0
    assert "wrote " + str(folder / "report.html") in capsys.readouterr().out
    scenario = json.loads((other / "scenario.json").read_text())
    (other / "scenario.json").write_text(json.dumps({**scenario, "name": "else"}))
    assert main(["report", str(folder), str(other)]) == 2
    assert "other holds results of another scenario than" in capsys.readouterr().err


def test_rows_of_cut_off_runs_are_left_out(folder):
    Store(folder).append("rows.jsonl", json.dumps({"run": 99, "system": "stock", "rate": 1.0}))
    assert all(row["run"] != 99 for row in read_results(folder).rows)


def test_a_folder_without_results_is_refused(tmp_path, folder, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no results of bench run" in capsys.readouterr().err
    (folder / "runs.jsonl").unlink()
    assert main(["report", str(folder)]) == 0, "a search alone can be reported"
    capsys.readouterr()
    (folder / "searches.jsonl").unlink()
    assert main(["report", str(folder)]) == 2
    assert "holds no complete run yet" in capsys.readouterr().err


def test_ticks_are_round_and_within():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.94) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert log_ticks(3, 60) == [5, 10, 20, 50]
    assert log_ticks(1, 10**6) == [10**i for i in range(7)]


def test_a_picture_places_its_points():
    chart = Chart("n", "a < b", "x", "y", series=[Series("s", [(1, 0), (100, 4)], 0)], x_log=True)
    drawn = svg(chart)
    assert "a &lt; b" in drawn
    (line,) = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in line.get("points").split())
    assert (x0, y0) == (68, 334), "lower left"
    assert (x1, y1) == (704, 58), "upper right"
    flat = Chart("n", "t", "x", "y", boxes=[Box(0, 0, 0, 0, 0)])
    ElementTree.fromstring(svg(flat))
