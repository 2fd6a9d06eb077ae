"""benchmarks/serving/simulated.py: each cell in the simulator, and its figures beside the measured."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import layered_sglang
import pytest
from evaluation_results import write_results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.model_zoo import find_preset
from layered_sglang.scheduling import CohortWork, DecodeWork, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.profile import CostProfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from simulated import (
    FRONT_END,
    NOISES,
    UNSETTLED,
    clock_of,
    compared,
    estimator_of,
    host_of,
    main,
    model_of,
    prefill_graph_rows,
    simulated,
    system_of,
)

PROFILES = Path(layered_sglang.__file__).parent / "profiles"
PROFILE = PROFILES / "h100-80gb-hbm3-qwen3-30b-a3b-fa3.json"


@pytest.mark.parametrize(
    ("kind", "flags", "planning", "expected"),
    [
        ("stock", "", {}, "chunked:8192"),
        ("stock", "--chunked-prefill-size 512 --enable-mixed-chunk", {}, "mixed:512"),
        ("stock", "--enable-mixed-chunk", {"chunked_prefill_size": 2048}, "mixed:2048"),
        ("stock", "--enable-mixed-chunk", {"enable_mixed_chunk": False}, "chunked:8192"),
        ("layered", "--itl-slo-ms 40", {}, "slo:40"),
        ("layered", "--itl-slo-ms 40", {"itl_slo_ms": 25}, "slo:25"),
        ("layered", "--itl-slo-ms 40", {"layer_group_policy": "fixed"}, "fixed:512"),
        ("layered", "--itl-slo-ms 40", {"num_layer_groups": 8}, "groups:8"),
        ("layered", "--layer-group-tokens 256", {}, "fixed:256"),
        ("layered", "--layer-group-policy fixed", {}, "fixed:512"),
        ("layered", "", {}, None),
        ("url", "", {}, None),
    ],
)
def test_what_a_system_is_in_the_simulator(kind, flags, planning, expected):
    system = system_of({"kind": kind, "flags": flags.split(), "planning": planning})
    assert (system and system.name) == expected


def test_every_cell_is_simulated_with_its_own_requests(tmp_path, capsys):
    results = write_results(tmp_path)
    assert main([str(results.folder), "--cost-profile", str(PROFILE)]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert "TTFT mean, ms" in heading
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        *("arxiv 1/s stock", "arxiv 1/s slo-40", "arxiv 1/s slo-20", "arxiv 1/s fixed"),
        *("arxiv 2/s stock", "arxiv 2/s slo-40", "arxiv 2/s slo-20", "arxiv 2/s fixed"),
        *("arxiv-shaped stock", "arxiv-shaped fixed", "chat fixed"),
    ]
    # Prompts of nine tokens take a few milliseconds, where half a second was "measured".
    assert " for 500 (-9" in rows[1]
    assert rows[1].endswith("100 for 100 (+0%) |")
    # Nothing came between the scheduler and the clients there.
    arguments = [str(results.folder), "--cost-profile", str(PROFILE), "--undisturbed"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[2:] == rows


@pytest.mark.parametrize(
    ("graphs", "flags", "rows"),
    [
        ({"backend": "breakable", "bs": [4, 512, 2048]}, [], 2048),
        ({"backend": "breakable", "bs": [4, 512]}, ["--enable-mixed-chunk"], 512),
        ({"backend": "disabled", "bs": [4, 8192]}, [], 0),
        ({"backend": "breakable", "bs": [4, 512]}, ["--disable-prefill-cuda-graph"], 0),
        (None, [], 512),
    ],
)
def test_prompts_replay_the_prefill_graphs_that_the_server_captured(graphs, flags, rows):
    info = {} if graphs is None else {"cuda_graph_config": {"prefill": graphs}}
    assert prefill_graph_rows(info, flags) == rows


def test_a_folder_or_a_profile_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--cost-profile", str(PROFILE)]) == 2
    assert capsys.readouterr().err.startswith(
        f"simulated: {tmp_path} holds no results of bench run"
    )
    results = write_results(tmp_path)
    assert main([str(results.folder), "--cost-profile", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def server_info(costs: str) -> dict:
    shape = ModelShape.from_config(dict(find_preset("qwen3-30b-a3b").config))
    model = {
        **{"shape": dataclasses.asdict(shape), "decode_sizes": [1, 2, 4, 8]},
        "coefficients": dataclasses.asdict(nominal_coefficients("H200")[0]),
        **{"graph_rows": 4096, "decode_graphs": True, "prefill_graph_rows": 0, "overlap": True},
    }
    return {"server_info": {"layered_sglang": {"costs": costs, "cost_model": model}}}


def with_server(results, costs: str):
    return dataclasses.replace(results, systems={"slo-40": server_info(costs)})


@pytest.mark.parametrize(
    ("costs", "limit"), [("data sheet of H200", 50.0), ("profile h200.json", 2.0)]
)
def test_a_planner_begins_as_its_server_did(tmp_path, costs, limit):
    results = with_server(write_results(tmp_path), costs)
    estimator = estimator_of(results, {"server": "slo-40"})
    assert estimator.correction.limit == limit and estimator.model.graph_rows == 4096
    assert (estimator.correction.first > 0) == ("sheet" in costs)
    assert estimator_of(results, {"server": "stock"}) is None


def test_a_server_s_planner_learns_from_cell_to_cell(tmp_path, monkeypatch):
    """All cells of a start share one, in the order in which they ran; a stock server has none."""
    seen = []
    real = sys.modules["simulated"].simulate

    def watched(system, setup, traffic, **options):
        outcome = real(system, setup, traffic, **options)
        estimator = setup.estimator
        seen.append((system.name, estimator and (id(estimator), estimator.correction.seen)))
        return outcome

    monkeypatch.setattr(sys.modules["simulated"], "simulate", watched)
    results = with_server(write_results(tmp_path), "data sheet of H200")
    outcomes = simulated(results, CostProfile.read(PROFILE))
    layered = [state for name, state in seen if not name.startswith("chunked")]
    layered = layered[NOISES - 1 :: NOISES]  # the other draws begin with a copy
    assert all(state is None for name, state in seen if name.startswith("chunked"))
    assert len({number for number, _ in layered}) == 1
    learnt = [count for _, count in layered]
    assert learnt == sorted(set(learnt))
    assert min(o.ttft.min() for o in outcomes["fixed", Point("chat", None)]) > FRONT_END


def test_a_cell_says_that_its_server_had_not_settled(tmp_path):
    results = write_results(tmp_path)
    runs = [run | {"warm_up": {"stable": run["system"] != "stock"}} for run in results.runs]
    titles = [
        row[0]
        for row in compared(dataclasses.replace(results, runs=runs), CostProfile.read(PROFILE))
    ]
    assert "arxiv 1/s slo-40" in titles and f"arxiv 1/s stock{UNSETTLED}" in titles


def test_a_clock_is_compared_with_that_of_the_profile_where_both_are_known():
    profile = CostProfile.read(PROFILES / "h200-qwen3-30b-a3b-fa3.json")
    assert clock_of({"sampled": {"sm_mhz": {"mean": 1739}}}, profile) == pytest.approx(
        0.9, abs=0.01
    )
    assert clock_of({}, profile) == 1.0
    assert clock_of({"sampled": {"sm_mhz": {"mean": 1739}}}, CostProfile.read(PROFILE)) == 1.0


def test_the_host_is_learnt_from_the_first_layered_cell_alone(tmp_path):
    """And the warm-up before it; a first group that was launched in 3 ms and 1 ms a layer."""
    results = write_results(tmp_path)
    profile = CostProfile.read(PROFILES / "h200-qwen3-30b-a3b-fa3.json")
    model = model_of(results, profile)
    assert host_of(model, results) is None
    lines = []
    for i in range(40):
        layers = 10 + i % 30
        seconds = (3e-3 + layers * 1e-3) * (1 if i < 20 else 5)
        at = 100.0 + i
        decode = {"kind": "decode", "decode": ["d"], "decode_context": 10, "cohort": []}
        group = {
            "kind": "merged",
            "layers": [0, layers],
            "cohort": [["p", 0, 8000]],
            "seconds": 0.1,
        }
        lines += [
            {**decode, "layers": None, "seconds": seconds, "time": at},
            {**decode, **group, "time": at + seconds / 2},
            {**decode, "layers": None, "seconds": 1.0, "time": at + seconds + 0.05},
        ]
    (results.folder / "traces").mkdir(exist_ok=True)
    trace = "".join(json.dumps(line) + "\n" for line in lines)
    (results.folder / "traces" / "slo-40-0.jsonl").write_text(trace)
    traced = {"trace": "slo-40-0.jsonl", "monotonic": [110.0, 119.9]}
    later = {"trace": "slo-40-0.jsonl", "monotonic": [119.9, 200.0]}
    by_run = {1: traced, 2: later}
    runs = [run | by_run.get(run["run"], {}) for run in results.runs]
    fit = host_of(model, dataclasses.replace(results, runs=runs))
    line = dataclasses.replace(model, coefficients=fit.coefficients).merged(
        DecodeWork(1, 10), CohortWork.of_prompt(8000)
    )
    assert line.at(True, False).host_seconds(20) == pytest.approx(23e-3, rel=0.02)
    assert fit.spread < 0.01
