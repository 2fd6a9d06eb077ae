"""``bench run`` against endpoints without a model: what is sent, timed, stored and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_endpoint import fake_endpoint
from layered_sglang.bench.command import main
from layered_sglang.bench.running import drive

SCENARIO = """\
about: a fake
model: {{path: none, vocabulary: 50}}
systems:
  a: {{url: "{a}"}}
  b: {{url: "{b}/v1", model: other}}
workload:
  prompt_tokens: {{uniform: [5, 9]}}
  output_tokens: 6
  arrivals: {{poisson: {{rate: 40}}}}
  requests: 8
targets: {{ttft_s: 100, itl_ms: 40_000}}
repeats: 2
warm_up: {{requests: 2, output_tokens: 2, most_rounds: 2}}
"""


@pytest.fixture
def endpoints():
    with fake_endpoint() as a, fake_endpoint() as b:
        yield a, b


@pytest.fixture
def scenario(endpoints, tmp_path):
    path = tmp_path / "fake.yaml"
    path.write_text(SCENARIO.format(a=endpoints[0].url, b=endpoints[1].url))
    return path


def lines(folder, name):
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("resident", ["one", "all"])
def test_all_systems_get_the_same_requests_and_every_one_has_its_row(
    scenario, endpoints, tmp_path, capsys, resident
):
    out = tmp_path / "out"
    command = ["run", str(scenario), "--output", str(out), "--set", f"resident={resident}"]
    assert (
        main([*command, "--set", "repeats_per_start=" + ("1" if resident == "one" else "2")]) == 0
    )
    a, b = endpoints
    assert sorted(a.prompts) == sorted(b.prompts)
    rows = lines(out, "rows.jsonl")
    assert len(rows) == 8 * 2 * 2
    for row in rows:
        assert row["output_tokens"] == 6
        assert len(row["itls_s"]) == 5
        assert row["error"] == ""
        assert a.GAP * 0.9 < row["ttft_s"] < row["e2e_s"]
        assert row["e2e_s"] == pytest.approx(row["ttft_s"] + sum(row["itls_s"]), abs=1e-4)
        # uvloop, which SGLang installs where a test imported it, counts in whole milliseconds.
        assert row["sent_s"] >= row["arrival"] - 0.001
    # In turn, and every other time in the other order.
    runs = lines(out, "runs.jsonl")
    assert [(r["system"], r["repeat"]) for r in runs] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    printed = capsys.readouterr().out
    assert "TTFT mean, ms" in printed
    assert "within TTFT ≤ 100 s, ITL ≤ 40000 ms, %" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert [record["repeats"] for record in summary] == [2, 2]


def test_the_first_errors_are_shown_and_the_rest_counted(scenario, endpoints, tmp_path, capsys):
    out = tmp_path / "out"
    endpoints[1].fail = lambda number: number > 6
    command = ["run", str(scenario), "--output", str(out), "--set", "repeats=1"]
    assert main(command) == 0
    rows = [row for row in lines(out, "rows.jsonl") if row["system"] == "b"]
    failed = [row for row in rows if row["error"]]
    assert len(rows) == 8
    assert 4 <= len(failed) < 8
    assert {row["error"] for row in failed} == {"HTTP 503: overloaded"}
    printed = capsys.readouterr().out
    assert printed.count("a request failed: HTTP 503: overloaded") == 3
    assert f"{8 - len(failed)} of 8 answered" in printed


def test_a_client_that_stood_still_says_so(scenario, tmp_path, capsys, monkeypatch):
    """All of a system's requests are due at once; the first one keeps the process for 0.3 s."""
    real, seen = drive.send, set()

    async def slow(session, prepared, row, start):
        if row.system == "a" and "a" not in seen:
            seen.add("a")
            time.sleep(0.3)
        await real(session, prepared, row, start)

    monkeypatch.setattr(drive, "send", slow)
    command = ["run", str(scenario), "--output", str(tmp_path / "out"), "--set", "repeats=1"]
    assert main([*command, "--set", "workload.arrivals=at_once"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "after its time" in line]
    assert told and "a, repeat 1 of 1: a request was sent" in told[0]


def test_an_endpoint_that_refuses_the_warm_up_is_left_out(scenario, endpoints, tmp_path, capsys):
    out = tmp_path / "out"
    endpoints[0].fail = lambda number: True
    assert main(["run", str(scenario), "--output", str(out)]) == 1
    assert {row["system"] for row in lines(out, "rows.jsonl")} == {"b"}
    (failure,) = lines(out, "failures.jsonl")
    assert failure["system"] == "a"
    assert "warm-up requests failed: HTTP 503: overloaded" in failure["error"]
    assert "a: 2 of 2 warm-up requests failed" in capsys.readouterr().out


def test_a_run_that_was_cut_off_goes_on(scenario, endpoints, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["run", str(scenario), "--output", str(out)]
    endpoints[1].gap = 600.0  # b takes longer than any limit here
    for limit in (6, 12, 24, 48):
        assert main([*command, "--time-limit", str(limit)]) == 1
        assert "time limit is reached" in capsys.readouterr().out
        first = [(run["system"], run["repeat"]) for run in lines(out, "runs.jsonl")]
        assert first in ([], [("a", 0)])
        if first:
            break
    else:
        pytest.fail("a's eight requests did not end within 48 s")
    endpoints[1].gap = 0.02
    assert main(command) == 0
    runs = lines(out, "runs.jsonl")
    assert [(r["system"], r["repeat"]) for r in runs] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert len({run["run"] for run in runs}) == 4
    assert main([*command, "--set", "repeats=3"]) == 2
    assert "results of another scenario" in capsys.readouterr().err


def test_a_repeat_alone_and_cells_that_are_not_in_all_of_them(endpoints, tmp_path, capsys):
    path, out = tmp_path / "fake.yaml", tmp_path / "out"
    cells = "cells: [{systems: [a]}, {systems: [b], only_repeats: [2]}]\n"
    path.write_text(SCENARIO.format(a=endpoints[0].url, b=endpoints[1].url) + cells)

    def runs():
        return [(run["system"], run["repeat"]) for run in lines(out, "runs.jsonl")]

    command = ["run", str(path), "--output", str(out)]
    assert main([*command, "--repeat", "2"]) == 0
    assert runs() == [("b", 1), ("a", 1)]
    assert main(command) == 0
    assert runs() == [("b", 1), ("a", 1), ("a", 0)]
    assert main([*command, "--repeat", "3"]) == 2
    assert "--repeat 3: there are 2, the first is 1" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(scenario, endpoints, tmp_path):
    out = tmp_path / "out"
    endpoints[1].gap = 600.0
    command = [sys.executable, "-m", "layered_sglang.bench", "run", str(scenario)]
    process = subprocess.Popen(
        [*command, "--output", str(out)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 200
    while not lines(out, "runs.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "interrupted" in printed
    assert "TTFT mean, ms" in printed
    assert len(lines(out, "rows.jsonl")) >= 8


def test_a_search_for_the_highest_rate(scenario, endpoints, tmp_path, capsys):
    out = tmp_path / "out"
    overrides = ["search.low=20", "search.high=60", "search.step=20", "repeats=1"]
    sets = [word for override in overrides for word in ("--set", override)]
    assert main(["run", str(scenario), "--output", str(out), "--only", "a", *sets]) == 0
    (search,) = lines(out, "searches.jsonl")
    target = "TTFT ≤ 100 s, ITL ≤ 40000 ms"
    found = {"system": "a", "repeat": 0, "workload": "", "target": target, "rate": 60.0}
    assert search == {**found, "tried": {"40": True, "60": True}}
    assert f"highest rate within {target}: 60.00/s" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text()) == []


def test_a_search_s_run_ends_when_its_answer_is_known(scenario, endpoints, tmp_path, capsys):
    out = tmp_path / "out"
    overrides = ["search.low=20", "search.high=60", "search.step=40", "repeats=1"]
    overrides += ["workload.output_tokens=60", "search.start=20", "warm_up.output_tokens=1"]
    overrides += ["targets.itl_ms=100"]
    sets = [word for override in overrides for word in ("--set", override)]
    endpoints[0].gap = 0.3  # 18 s an answer; the target is missed with the first two tokens
    assert main(["run", str(scenario), "--output", str(out), "--only", "a", *sets]) == 0
    (search,) = lines(out, "searches.jsonl")
    assert search["rate"] is None
    assert search["tried"] == {"20": False}
    assert "20/s: 0 of 8 answered" in capsys.readouterr().out


CELLS = """\
systems:
  a: {{url: "{a}"}}
  a-slow: {{on: a, request: {{gap_s: 0.05, nested: {{deep: 1}}}}}}
  b: {{url: "{b}"}}
workloads:
  few: {{prompt_tokens: 3, output_tokens: 4, arrivals: {{poisson: {{rate: 40}}}}, requests: 4}}
  more: {{prompt_tokens: 6, output_tokens: 4, arrivals: {{poisson: {{rate: 40}}}}, requests: 5}}
cells:
  - {{workload: more, rates: [30, 50], systems: [a, a-slow]}}
  - {{workload: few}}
model: {{path: none, vocabulary: 50}}
targets: {{ttft_s: 0.5, itl_ms: 200}}
repeats: 1
warm_up: {{requests: 2, output_tokens: 2, most_rounds: 2}}
"""


@pytest.fixture
def cells(endpoints, tmp_path):
    path = tmp_path / "cells.yaml"
    path.write_text(CELLS.format(a=endpoints[0].url, b=endpoints[1].url))
    return path


def test_cells_run_in_order_within_one_start_with_their_own_fields(cells, endpoints, tmp_path):
    out = tmp_path / "out"
    assert main(["run", str(cells), "--output", str(out)]) == 0
    runs = lines(out, "runs.jsonl")
    assert [(r["system"], r["workload"], r["rate"]) for r in runs] == [
        *[("a", "more", 30.0), ("a-slow", "more", 30.0)],
        *[("a", "more", 50.0), ("a-slow", "more", 50.0)],
        *[("a", "few", None), ("a-slow", "few", None), ("b", "few", None)],
    ]
    assert [r["warm_up"] for r in runs[:6]] == [runs[0]["warm_up"]] * 6, "one start"
    bodies = endpoints[0].bodies[-28:]
    assert [body.get("nested") for body in bodies[:10]] == [None] * 5 + [{"deep": 1}] * 5
    assert [body.get("gap_s") for body in bodies[:10]] == [None] * 5 + [0.05] * 5
    for run in runs:
        rows = [row for row in lines(out, "rows.jsonl") if row["run"] == run["run"]]
        assert len(rows) == (4 if run["workload"] == "few" else 5)
        assert {row["prompt_tokens"] for row in rows} == {3 if run["workload"] == "few" else 6}
        if run["system"] == "a-slow":
            assert min(row["e2e_s"] / row["output_tokens"] for row in rows) > 0.049
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary) == 7
    assert main(["report", str(out)]) == 0
    text = (out / "report.md").read_text()
    for title in ("## Results more at 30 requests/s", "## Results few", "few: Lengths: "):
        assert title in text


def test_a_run_killed_between_cells_keeps_them_and_goes_on(cells, endpoints, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "layered_sglang.bench",
        "run",
        str(cells),
        "--output",
        str(out),
    ]
    endpoints[0].gap = 0.2
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 200
    while len(lines(out, "runs.jsonl")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()  # no chance to clean up
    process.wait()
    before = lines(out, "runs.jsonl")
    assert main(["report", str(out)]) == 0, "what there is can be reported"
    endpoints[0].gap = 0.02
    assert main(command[3:]) == 0
    runs = lines(out, "runs.jsonl")
    assert runs[: len(before)] == before
    assert len(runs) == len({(r["system"], r["workload"], r["rate"]) for r in runs}) == 7


def test_a_cell_that_cannot_end_in_time_is_not_begun(cells, tmp_path, capsys):
    out = tmp_path / "out"
    sets = ["workloads.few.requests=null", "workloads.few.duration=3600"]
    command = ["run", str(cells), "--output", str(out), "--time-limit", "60"]
    assert main([*command, *[word for s in sets for word in ("--set", s)]]) == 1
    assert [run["workload"] for run in lines(out, "runs.jsonl")] == ["more"] * 4
    printed = capsys.readouterr().out
    assert "time limit is reached" in printed
    assert "7 runs in 0 server starts; requests arrive for 10800 s in all" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--set", "repeats=none"], "--set: repeats: expected a whole number, got 'none'"),
        (["--only", "c"], "--only c: no such system; there are: a, b"),
    ],
)
def test_a_bad_command_is_one_line(scenario, tmp_path, capsys, command, message):
    assert main(["run", str(scenario), "--output", str(tmp_path / "out"), *command]) == 2
    assert capsys.readouterr().err == f"bench: {message}\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_refused(scenario, tmp_path, capsys):
    assert main(["run", str(scenario), "--output", str(tmp_path)]) == 2
    assert "is not empty; choose another folder with --output" in capsys.readouterr().err
