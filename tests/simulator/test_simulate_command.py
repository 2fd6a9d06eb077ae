"""The command: a table, a JSON file, and errors in one line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.profile import CostProfile
from layered_sglang.simulate import main

SMALL = ["--requests", "40", "--rate", "4", "--processes", "1"]


def test_a_table_and_a_json_file(capsys, tmp_path):
    path = tmp_path / "out.json"
    systems = ["slo:40", "fixed", "groups:4", "chunked", "mixed:1024"]
    assert main([*systems, *SMALL, "--short", "5000", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    names = ["slo:40", "fixed:512", "groups:4", "chunked:8192", "mixed:1024"]
    assert printed.splitlines()[1].split() == names
    assert "TTFT mean" in printed and "short P99" not in printed.splitlines()[0]
    record = json.loads(path.read_text())
    assert list(record["systems"]) == names
    slo = record["systems"]["slo:40"]
    assert slo["requests"] == 40 and 0 < slo["ttft_ms"]["p50"] <= slo["ttft_ms"]["p99"]
    assert slo["itl_ms"]["max"] <= 40.001 and slo["ttft_ms_short"]["mean"] > 0


def test_a_fitted_profile_takes_the_place_of_nominal_figures(capsys, tmp_path):
    coefficients, _ = nominal_coefficients("A100")
    path = tmp_path / "p.json"
    model = "Qwen3MoeForCausalLM 48x2048 experts 128"
    CostProfile("X", model, "fa3", 1, coefficients, spread=0.7).write(path)
    assert main(["fixed", *SMALL, "--cost-profile", str(path)]) == 0
    fitted = capsys.readouterr().out
    assert main(["fixed", *SMALL, "--device", "A100"]) == 0
    assert fitted.splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]


def test_random_routing_loads_more_experts(tmp_path):
    loaded = {}
    for routing in ("trained", "random"):
        path = tmp_path / routing
        assert main(["fixed", *SMALL, "--routing", routing, "--json", str(path)]) == 0
        loaded[routing] = json.loads(path.read_text())["systems"]["fixed:512"]["expert_terabytes"]
    assert loaded["random"] > 1.05 * loaded["trained"]


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["slo:x"], "system 'slo:x' is none of slo["),
        (["fixed:1.5"], "system 'fixed:1.5'"),
        (["fast"], "system 'fast'"),
        (["--rate", "-1"], "--rate must be positive, got -1.0"),
        (["--requests", "0"], "--requests must be positive"),
        (["--prompts", "zipf:3"], "lengths 'zipf:3'"),
        (["--arrivals", "gamma:0"], "arrivals 'gamma:0'"),
        (["--arrivals", "replay"], "needs --trace"),
        (["--trace", "/nonexistent.csv"], "/nonexistent.csv: No such file or directory"),
        (["--cost-profile", "/nonexistent.json"], "/nonexistent.json: No such file"),
        (["--device", "TPU"], "--device TPU: no data sheet"),
        (["--model", "gpt-5"], "gpt-5"),
        (["--planner-error", "-1"], "--planner-error '-1' is no NOISE[,BIAS]"),
        (["--shared-prefix", "3"], "--shared-prefix '3' is no GROUPS:TOKENS"),
        (["--kv-tokens", "100"], "does not fit into --kv-tokens 100"),
    ],
)
def test_errors_are_one_line(capsys, arguments, what):
    assert main([*SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("simulate: ") and what in printed.err


def test_a_missing_rate_is_said(capsys):
    assert main(["slo", "--requests", "5"]) == 2
    assert "arrivals poisson need --rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, what",
    [
        ("a,b\n1,2\n", "no column num_prefill_tokens"),
        ("prompt,output\n1,x\n", "line 2: output is 'x', expected a number"),
        ("prompt,output\n1\n", "line 2: output is None, expected a number"),
        ("prompt,output\n", "no requests in it"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(capsys, tmp_path, text, what):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    assert main([*SMALL, "--trace", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and what in error and error.count("\n") == 1


def test_a_plot_or_the_package_that_it_needs(capsys, tmp_path):
    path = tmp_path / "plot.png"
    status = main(["slo", *SMALL, "--plot", str(path)])
    if importlib.util.find_spec("matplotlib"):
        assert status == 0 and path.read_bytes().startswith(b"\x89PNG")
    else:
        assert status == 2 and "layered-sglang[plots]" in capsys.readouterr().err


def test_the_simulator_needs_neither_torch_nor_sglang():
    code = (
        "import sys, layered_sglang.simulate;"
        "sys.exit(any(m.split('.')[0] in ('torch', 'sglang') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
