"""The benchmark with real servers: stock and layered measured, and one that dies under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from threading import Event, Thread

import pytest
from layered_sglang.bench import command

pytestmark = pytest.mark.server
SHORT = """\
name: short
about: two servers, a few requests
model: {preset: tiny}
systems:
  doomed: {server: stock}
  layered: {flags: --layer-group-tokens 256}
workload:
  prompt_tokens: 700
  # The first answer is there well before the last one, however slow the server is.
  output_tokens: {uniform: [10, 70]}
  arrivals: {poisson: {rate: 3}}
  requests: 9
  router: shaped
targets: {ttft_s: 10, itl_ms: 1000}
repeats: 1
expert_bytes: true
warm_up: {requests: 1, output_tokens: 4, least_rounds: 1, most_rounds: 1}
"""


SHARED = """\
name: shared
about: two starts, six systems
model: {preset: tiny}
systems:
  stock: {flags: --chunked-prefill-size 1024}
  stock-256: {on: stock, planning: {chunked_prefill_size: 256, enable_mixed_chunk: true}}
  layered: {flags: --layer-group-tokens 256}
  fixed-2: {on: layered, planning: {num_layer_groups: 2}}
  slo: {on: layered, planning: {itl_slo_ms: 60000}, request: {sampling_params: {top_k: 3}}}
  wrong: {on: layered, planning: {num_layer_groups: 99}}
workloads:
  long: &long
    prompt_tokens: 700
    output_tokens: 40
    arrivals: {poisson: {rate: 3}}
    requests: 4
  shaped: {<<: *long, router: shaped}
cells:
  - {workload: shaped, systems: [layered, stock]}
  - {workload: long}
targets: {ttft_s: 10, itl_ms: 1000}
repeats: 1
warm_up: {requests: 1, output_tokens: 4, least_rounds: 1, most_rounds: 1}
expert_bytes: true
"""


def bench(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "layered_sglang.bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.timeout(900)
def test_quick_measures_stock_and_layered(started, capsys, tmp_path):
    started.anew = "layered_sglang.launch_server"
    for attempt in range(4):
        out = tmp_path / f"out{attempt}"
        assert command.main(["run", "quick", "--output", str(out)]) == 0
        assert "TTFT mean, ms" in capsys.readouterr().out
        if expect_quick(out):
            break
    else:
        pytest.fail("no iteration ran a layer group: no prompt came while another request decoded")
    printed, errors = bench("report", str(out)).communicate(timeout=200)
    assert f"wrote {out / 'report.html'}" in printed, errors
    page = (out / "report.html").read_text()
    for picture in ("TTFT: share of requests", "One request", "layered: who ran which layers"):
        assert picture in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "it stands by itself"


def expect_quick(out):
    """What it measured; whose prompts were layered."""
    rows = lines(out / "rows.jsonl")
    asked = {}
    for system in ("stock", "layered"):
        own = [row for row in rows if row["system"] == system]
        assert [row["error"] for row in own] == [""] * 10
        for row in own:
            # On a busy machine tokens come together: the others of the first ones have no gap.
            assert len(row["itls_s"]) < row["output_tokens"]
            assert 0 < row["ttft_s"] <= row["e2e_s"]
        assert any(row["itls_s"] for row in own)
        asked[system] = {(r["index"], r["prompt_tokens"], r["output_tokens"]) for r in own}
    assert asked["stock"] == asked["layered"]

    _, layered = lines(out / "runs.jsonl")
    assert "running_requests" in layered["sampled"]
    start, end = layered["monotonic"]
    trace = [t for t in lines(out / "traces" / layered["trace"]) if start <= t["time"] <= end]
    cohort = {rid for t in trace if t["layers"] for rid, *_ in t["cohort"]}
    assert cohort <= {row["rid"] for row in rows if row["system"] == "layered"}

    systems = json.loads((out / "systems.json").read_text())
    assert "-m sglang.launch_server" in systems["systems"]["stock"]["command"]
    assert "-m layered_sglang.launch_server" in systems["systems"]["layered"]["command"]
    assert systems["systems"]["stock"]["server_info"]["chunked_prefill_size"] == 512
    assert systems["machine"]["packages"]["sglang"]
    return cohort


@pytest.mark.timeout(900)
def test_a_server_that_dies_is_reported_and_the_others_are_measured(started, capsys, tmp_path):
    scenario = tmp_path / "short.yaml"
    scenario.write_text(SHORT)
    for attempt in range(4):
        out = tmp_path / f"out{attempt}"
        started.servers.clear()
        with killed_once_it_answers(started.servers, out / "rows.jsonl"):
            status = command.main(["run", str(scenario), "--output", str(out)])
        if "doomed" not in [run["system"] for run in lines(out / "runs.jsonl")]:
            break
    else:
        pytest.fail("it had been measured whenever this process looked")
    assert status == 1
    (failure,) = lines(out / "failures.jsonl")
    assert failure["system"] == "doomed"
    assert failure["error"] == "the server ended with status -9"
    assert "POST /generate" in failure["log_end"]
    printed = capsys.readouterr().out
    assert "doomed: the server ended with status -9; it is left out from here on" in printed
    (run,) = lines(out / "runs.jsonl")
    assert run["system"] == "layered"
    expect_expert_loads(run["experts"])
    finished = [row for row in lines(out / "rows.jsonl") if row["system"] == "layered"]
    assert [row["error"] for row in finished] == [""] * 9
    assert [record["system"] for record in json.loads((out / "summary.json").read_text())] == [
        "layered"
    ]


@contextmanager
def killed_once_it_answers(servers, rows):
    """The first server that the block starts is killed when ``rows`` has an answer."""
    over = Event()

    def kill():
        while not (rows.exists() and rows.stat().st_size):
            if over.wait(0.05):
                return
        with suppress(ProcessLookupError):
            os.kill(servers[0].pid, signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@pytest.mark.timeout(900)
def test_one_start_measures_systems_that_plan_differently(started, tmp_path):
    scenario = tmp_path / "shared.yaml"
    scenario.write_text(SHARED)
    for attempt in range(3):
        groups = expect_one_start(scenario, tmp_path / f"out{attempt}")
        if all(groups.values()):
            break
    else:
        pytest.fail(f"no prompt came while another request decoded: {groups}")
    assert groups["layered"] <= {2, 3}, "three groups of eight layers"
    assert groups["fixed-2"] == {4}
    assert groups["slo"] == {8}


def expect_one_start(scenario, out):
    """... of two servers for six systems; how many layers each system's layer groups of a prompt had."""
    assert command.main(["run", str(scenario), "--output", str(out)]) == 1
    (failure,) = lines(out / "failures.jsonl")
    assert failure["system"] == "wrong"
    assert "--num-layer-groups 99 is more than the model's 8 layers" in failure["error"]
    runs = {(r["system"], r["workload"]): r for r in lines(out / "runs.jsonl")}
    assert list(runs) == [
        *[("stock", "shaped"), ("stock", "long"), ("stock-256", "long")],
        *[("layered", "shaped"), ("layered", "long"), ("fixed-2", "long"), ("slo", "long")],
    ]
    assert [row["error"] for row in lines(out / "rows.jsonl")] == [""] * 28
    assert sorted(path.name for path in (out / "logs").iterdir()) == [
        "layered-0.log",
        "stock-0.log",
    ], "one start each"
    warm_ups = {name: run["warm_up"] for (name, _), run in runs.items()}
    assert warm_ups["stock"] != warm_ups["stock-256"], "each of SGLang's schedules has its own"
    assert warm_ups["layered"] == warm_ups["fixed-2"] == warm_ups["slo"]
    # Chunks of SGLang's own schedule: 700 tokens at once, 256 in the cells of stock-256.
    log = (out / "logs" / "stock-0.log").read_text()
    assert "#new-token: 700," in log
    assert "#new-token: 256," in log
    trace = lines(out / "traces" / "layered-0.jsonl")
    groups = {}
    for system in ("layered", "fixed-2", "slo"):
        start, end = runs[system, "long"]["monotonic"]
        inside = [t for t in trace if start <= t["time"] <= end and t["layers"] and t["decode"]]
        groups[system] = {t["layers"][1] - t["layers"][0] for t in inside if len(t["cohort"]) == 1}
    # A shaped router reaches fewer experts. (In a layered server's iterations decode rows reach some in
    # the other layers, more or fewer by the time that requests take.)
    loads = [runs["stock", name]["experts"] for name in ("shaped", "long")]
    shaped, uniform = (x["loads"]["prompts"] / x["iterations"]["prompts"] for x in loads)
    assert shaped < uniform
    return groups


def expect_expert_loads(experts):
    """Eight layers of 16 experts, four of them for each token."""
    assert experts["bytes_per_expert"] == 3 * 64 * 64 * 4
    loads, iterations = experts["loads"], experts["iterations"]
    # Up to 70 tokens each; how many requests decode or are layered together, the machine's speed says.
    assert 40 <= iterations["decode"] <= 9 * 69
    assert 1 <= iterations["prompts"] <= 9 * 8
    for kind, count in loads.items():
        assert 8 * 4 <= count / iterations[kind] <= 8 * 16
    # However few requests decode beside it: in its two layers or more a prompt reaches most experts.
    assert loads["prompts"] / iterations["prompts"] > 6 * 4 + 2 * 10


def test_a_bad_scenario_is_one_line_with_its_place(tmp_path):
    scenario = tmp_path / "bad.yaml"
    text = SHORT.replace("requests: 9", "request: 9")
    scenario.write_text(text)
    line = 1 + next(i for i, words in enumerate(text.splitlines()) if "request: 9" in words)
    process = bench("run", str(scenario), "--output", str(tmp_path / "out"))
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert printed == ""
    assert errors.startswith(
        f"bench: {scenario}:{line}: workload.request: unknown key; there are: "
    )
    assert errors.count("\n") == 1
