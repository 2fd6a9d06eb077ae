"""Scenario files: what is read, and that every complaint names file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered_sglang.bench.spec.cells import Cell
from layered_sglang.bench.spec.located import ScenarioError
from layered_sglang.bench.spec.scenario import find_scenario, load_scenario
from layered_sglang.bench.spec.target import Target

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
model: {preset: tiny}
flags: --dtype float32
systems:
  stock:
    flags: --chunked-prefill-size "512"
  mine:
    server: layered
  elsewhere:
    url: http://127.0.0.1:9/v1/
workload:
  prompt_tokens: 100
  output_tokens: {uniform: [2, 4]}
  arrivals: {poisson: {rate: 2}}
  requests: 5
targets: {ttft_s: 1, itl_ms: 50}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(text)
        return path

    return write


def test_a_scenario_is_read(write):
    scenario = load_scenario(write(GOOD))
    assert scenario.name == "s"
    stock, mine, elsewhere = scenario.systems
    assert (stock.kind, mine.kind, elsewhere.kind) == ("stock", "layered", "url")
    assert stock.flags == ("--dtype", "float32", "--chunked-prefill-size", "512")
    assert elsewhere.flags == ()
    assert elsewhere.url == "http://127.0.0.1:9"
    assert scenario.targets == (Target(1.0, 50.0),)
    assert scenario.model.vocabulary == 320


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("preset: tiny", "preset: huge", 1, "model.preset: unknown preset 'huge'; there are: tiny"),
        ("server: layered", "server: vllm", 7, "systems.mine.server: expected one of stock, layered"),
        ("    server: layered", "    sever: layered", 7, "systems.mine.sever: unknown key; there"),
        ("    server: layered", "    flags: --a", 7, "systems.mine: needs server: stock, server:"),
        ("    flags: --ch", "    flgs: --ch", 5, "systems.stock.flgs: unknown key; there are: env"),
        ('"512"', '"512', 5, "systems.stock.flags: cannot be split into flags"),
        ("prompt_tokens: 100", "prompt_tokens: -3", 11, "workload.prompt_tokens: must be at least 1"),
        (
            "prompt_tokens: 100",
            "prompt_tokens: {mixture: [[1]]}",
            11,
            "workload.prompt_tokens.mixture[0]: expected [share, length]",
        ),
        ("prompt_tokens: 100", "prompt_tokens: many", 11, "workload.prompt_tokens: expected keys"),
        ("[2, 4]", "[4, 2]", 12, "workload.output_tokens.uniform: expected [least, most]"),
        ("rate: 2", "rate: 0", 13, "workload.arrivals.poisson.rate: must be greater than 0"),
        ("poisson", "constant", 13, "workload.arrivals: expected exactly one of poisson, bursty"),
        ("{poisson: {rate: 2}}", "{replay: {}}", 13, "workload.arrivals: needs a trace"),
        ("  requests: 5\n", "", 11, "workload: needs either requests or duration"),
        ("  requests: 5\n", "  requests: 5\n  requests: 6\n", 15, "workload.requests: this key is th"),
        ("itl_ms: 50", "itl: 50", 15, "targets: the key 'itl_ms' is missing"),
        ("model: {preset: tiny", "model: {draft: eagle3, path: m", 1, "model.draft: is written for a"),
        ("systems:", "systems: [", 5, "not valid YAML:"),
        ("targets:", "target:", 15, "target: unknown key; there are:"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_and_key(write, old, new, line, message):
    assert GOOD.count(old) >= 1
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScenarioError, match=r"no\.yaml: cannot be read: No such file"):
        load_scenario(tmp_path / "no.yaml")
    with pytest.raises(ScenarioError, match="no scenario of this name; there are: quick"):
        find_scenario("quik")


SEVERAL = """\
model: {preset: tiny}
systems:
  stock: {}
  slo-40: {server: layered, flags: --itl-slo-ms 40, environment: {A: 1}}
  slo-20: {on: slo-40, request: {sampling_params: {custom_params: {itl_slo_ms: 20}}}}
  fixed: {on: slo-40, planning: {layer_group_policy: fixed}}
workloads:
  long: &long
    prompt_tokens: 100
    output_tokens: 4
    arrivals: {poisson: {rate: 2}}
    requests: 5
  shaped: {<<: *long, router: shaped}
cells:
  - {workload: shaped, systems: [stock, fixed]}
  - {workload: long, rates: [3, 1], systems: slo-20}
  - {workload: long, rates: [1]}
targets: [{ttft_s: 1, itl_ms: 50}, {ttft_s: 2, itl_ms: 90}]
search: {workload: long, systems: [fixed], target: 2, low: 1, high: 4, step: 0.5, start: 2}
"""


def test_cells_are_in_the_file_s_order_and_systems_may_share_a_server(write):
    scenario = load_scenario(write(SEVERAL))
    listed = [(c.system, c.workload, c.rate) for c in scenario.cells]
    assert listed == [
        *[("stock", "shaped", None), ("fixed", "shaped", None)],
        *[("slo-20", "long", 3.0), ("slo-20", "long", 1.0)],
        *[("stock", "long", 1.0), ("slo-40", "long", 1.0), ("fixed", "long", 1.0)],
    ]
    stock, slo40, slo20, fixed = scenario.systems
    assert [s.server for s in scenario.systems] == ["stock", "slo-40", "slo-40", "slo-40"]
    assert slo20.request == {"sampling_params": {"custom_params": {"itl_slo_ms": 20}}}
    assert fixed.planning == {"layer_group_policy": "fixed"}
    assert (slo20.kind, slo20.flags, slo20.environment) == ("layered", slo40.flags, (("A", "1"),))
    assert slo40.request == stock.planning == {}
    assert scenario.shapes_routers
    assert scenario.workloads["long"].router == "uniform"
    (search,) = scenario.searches
    assert search.target == scenario.targets[1]
    assert search.start["fixed"] == 2
    assert search.rates() == [1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_without_cells_every_workload_runs_at_every_rate_under_every_system(write):
    scenario = load_scenario(write(GOOD), ["rates=[1, 2]"])
    names = ("stock", "mine", "elsewhere")
    assert scenario.cells == tuple(Cell(name, "", rate) for rate in (1.0, 2.0) for name in names)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("on: slo-40, planning", "on: slo-41, planning", 6, "systems.fixed.on: expected one of stock"),
        ("on: slo-40, planning", "on: slo-20, planning", 6, "systems.fixed.on: expected one of stock"),
        ("on: slo-40, request", "on: slo-40, flags: -a, request", 5, "systems.slo-20.flags: unknown key"),
        ("stock: {}", "stock: {planning: {a: 1}}", 3, "systems.stock.planning.a: unknown key; there"),
        ("stock: {}", "stock: {planning: {enable_mixed_chunk: 1}}", 3, "systems.stock.planning.enable"),
        ("[stock, fixed]", "[stock], only_repeats: 0", 15, "cells[0].only_repeats: must be at least 1"),
        ("stock: {}", "stock: {request: 3}", 3, "systems.stock.request: expected keys and values, got 3"),
        ("workload: shaped, s", "workload: shape, s", 15, "cells[0].workload: expected one of long, sh"),
        ("- {workload: shaped, ", "- {", 15, "cells[0]: the key 'workload' is missing"),
        ("[stock, fixed]", "[stock, fix]", 15, "cells[0].systems[1]: expected one of stock"),
        ("router: shaped", "router: bent", 13, "workloads.shaped.router: expected one of un"),
        ("  shaped: {", "  a b: {", 13, "workloads.a b: a workload's name has letters"),
        ("targets: [", "rates: 2\ntargets: [", 18, "rates: the cells have their own; leave it out"),
        ("target: 2", "target: 3", 19, "search: needs targets; target 3 is none of the 2 there are"),
        ("start: 2", "start: {fix: 2}", 19, "search.start.fix: no such system; there are: stock, slo-40"),
        ("low: 1, high: 4", "low: 5, high: 4", 19, "search: low (5) must be below high (4)"),
    ],
)  # fmt: skip
def test_a_mistake_in_cells_and_shared_servers_is_told(write, old, new, line, message):
    assert SEVERAL.count(old) == 1
    path = write(SEVERAL.replace(old, new))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")


def test_overrides(write):
    path = write(GOOD)
    overrides = ["workload.requests=9", "search.low=1", "search.high=2", "systems.mine.flags=--a b"]
    scenario = load_scenario(path, overrides)
    assert scenario.workloads[""].requests == 9
    (search,) = scenario.searches
    assert search.rates() == [1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875, 2]
    assert search.target == Target(1.0, 50.0)
    assert scenario.cells == ()
    assert scenario.systems[1].flags == ("--dtype", "float32", "--a", "b")
    with pytest.raises(ScenarioError, match=r"^--set: repeats: must be at least 1, got 0"):
        load_scenario(path, ["repeats=0"])
    with pytest.raises(ScenarioError, match=r"^--set repeats: expected KEY.PATH=VALUE"):
        load_scenario(path, ["repeats"])
    with pytest.raises(ScenarioError, match="repeats holds no keys"):
        load_scenario(path, ["repeats=1", "repeats.more=2"])


def test_a_trace_that_is_missing_or_has_other_columns(write, tmp_path):
    text = GOOD.replace("  prompt_tokens: 100\n", "  trace: {file: t.csv}\n")
    text = text.replace("  output_tokens: {uniform: [2, 4]}\n", "")
    trace = tmp_path / "t.csv"
    override = [f"workload.trace.file={trace}"]
    path = write(text)
    with pytest.raises(
        ScenarioError, match=r"name the trace with --set workload\.trace\.file=PATH"
    ):
        load_scenario(path, override)
    trace.write_text("a,b\n1,2\n")
    with pytest.raises(
        ScenarioError, match=r"s\.yaml:11: workload\.trace: .*no column 'num_prefill"
    ):
        load_scenario(path, override)
    trace.write_text("num_prefill_tokens,num_decode_tokens\n5,2\n0,3\n7,x\n")
    with pytest.raises(ScenarioError, match="holds no numbers"):
        load_scenario(path, override)


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "benchmarks" / "serving" / "scenarios").glob("*.yaml")),
    ids=lambda p: p.stem,
)
def test_the_repository_s_scenarios_are_valid(path, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens,arrived_at\n100,20,0\n200,30,1.5\n")
    overrides = [f"workload.trace.file={trace}"] if "\n  trace:" in path.read_text() else []
    scenario = load_scenario(path, overrides)
    assert scenario.name == path.stem
    assert scenario.about
    assert scenario.targets
