"""Scenario files: what is read, and that every complaint names file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered_sglang.bench.located import ScenarioError
from layered_sglang.bench.scenario import Target, find_scenario, load_scenario

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


def test_overrides(write):
    path = write(GOOD)
    overrides = ["workload.requests=9", "search.low=1", "search.high=2", "systems.mine.flags=--a b"]
    scenario = load_scenario(path, overrides)
    assert scenario.workload.requests == 9
    assert scenario.search is not None
    assert scenario.search.high == 2
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
    overrides = [f"workload.trace.file={trace}"] if "trace:" in path.read_text() else []
    scenario = load_scenario(path, overrides)
    assert scenario.name == path.stem
    assert scenario.about
    assert scenario.targets
