"""benchmarks/serving/delivery.py: gaps at the scheduler beside those at clients, and pauses between."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_results import write_results

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from delivery import arrivals, main, matched, pauses, results_of, undisturbed


def row(rid: str, *times: float, sent: float = 0.0) -> dict:
    first, *_ = times
    return {
        **{"rid": rid, "run": 0, "sent_s": sent, "ttft_s": first - sent, "error": ""},
        "itls_s": np.diff(times).tolist(),
    }


def line(number: int, time: float, seconds: float, *samples: str) -> dict:
    return {"iteration": number, "time": time, "seconds": seconds, "samples": samples}


@pytest.fixture
def run(tmp_path) -> dict:
    """An iteration of before the run, three of 20 ms, and the one that overlap launches too many; each
    is launched while the one before it runs."""
    lines = [
        line(1, 4.000, 1.000, "a"),
        line(2, 4.990, 0.020, "a"),
        line(4, 5.021, 0.020, "a", "b"),
        line(3, 5.001, 0.020, "a", "b"),
        line(5, 5.041, 0.020, "a"),
    ]
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return {"run": 0, "folder": str(tmp_path), "trace": "x.jsonl", "monotonic": [4.5, 6.0]}


def test_results_are_told_from_result_to_result(run):
    told = results_of(run)
    assert told["a"] == pytest.approx([5.02, 5.04, 5.06, 5.08])
    assert told["b"] == pytest.approx([5.04, 5.06])
    assert results_of(run | {"trace": None}) == {}


def test_a_client_s_tokens_are_matched_with_their_results(run):
    rows = [row("a", 0.521, 0.571, 0.581), row("b", 0.541, 0.561), row("c", 0.6, 0.7)]
    (client, server), _ = matched(run, rows)
    assert client - server == pytest.approx([-4.499, -4.469, -4.479])


def steady(rid: str, pause: bool, first: float = 0.0) -> dict:
    """A token each 20 ms; with a pause those of 0.5 s come at its end, 1 ms apart."""
    times = first + 0.02 * np.arange(1, 100)
    if pause:
        held = (times > 1.0) & (times < 1.5)
        times[held] = 1.5 + 1e-3 * np.arange(held.sum())
        times = np.maximum.accumulate(times)
    return row(rid, *times)


def test_a_pause_is_a_gap_that_many_tokens_follow_at_once():
    held = [steady("a", True), steady("b", True, first=0.005)]
    ((begin, end),) = pauses(held)
    assert begin == pytest.approx(1.0, abs=0.01) and end == pytest.approx(1.5)
    # Idle, then a new request: nobody waited for a token. And an iteration of 0.5 s: one token each.
    assert pauses([row("a", 0.02, 0.04), row("b", 0.8, 0.82, sent=0.7)]) == []
    assert pauses([row("a", 0.02, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62)]) == []
    assert pauses([steady("a", False)]) == [] == pauses([])


def test_gaps_are_the_scheduler_s_or_without_pauses(run, tmp_path):
    results = write_results(tmp_path / "other")
    first, second, *_ = (each["run"] for each in results.runs)
    named = {"system": "stock", "workload": "arxiv", "repeat": 0, "rate": 1, "e2e_s": 1.0}
    more = {"prompt_tokens": 9, "output_tokens": 3, "arrival": 0.0, **named}
    rows = [
        {**row("a", 0.521, 0.571, 0.581), **more, "run": first},
        {**steady("z", True), **more, "run": second},
    ]
    runs = [
        {**each, **(run if each["run"] == first else {}), "run": each["run"]}
        for each in results.runs
        if each["run"] in (first, second)
    ]
    seen = undisturbed(dataclasses.replace(results, rows=rows, runs=runs))
    by_run = {each["run"]: each["itls_s"] for each in seen.rows}
    assert by_run[first] == pytest.approx([0.02, 0.02])
    assert max(by_run[second]) == pytest.approx(0.02) and len(by_run[second]) == 97
    assert [record["metrics"] for record in seen.summary] != []


def test_each_run_has_a_row(tmp_path, capsys):
    results = write_results(tmp_path)
    assert main([str(results.folder)]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert "ITL P99 of results" in heading and len(rows) == len(results.runs)
    assert rows[0].startswith("| arxiv 1/s stock | – | 40.0 | – | 40.0 | – |")
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("delivery: ")


def test_a_request_without_an_answer_has_no_arrivals():
    assert len(arrivals({"ttft_s": None, "itls_s": [], "sent_s": 1.0})) == 0
