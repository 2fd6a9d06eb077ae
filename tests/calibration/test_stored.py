"""A fit to iterations that a benchmark stored: its rows, its refusals, no server."""

from __future__ import annotations

import dataclasses
import json

import pytest
from layered_sglang import calibrate
from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.stored import read_stored
from layered_sglang.model_zoo.published import QWEN3_30B_A3B
from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.profile import CostProfile

SHAPE = ModelShape.from_config(QWEN3_30B_A3B)
START = CostModel(SHAPE, nominal_coefficients("H200")[0], graph_rows=4096, overlap=False)
#: A GPU whose memory is slower than the data sheet's.
TRUTH = dataclasses.replace(
    START,
    coefficients=dataclasses.replace(
        START.coefficients, expert_bandwidth=0.6 * START.coefficients.expert_bandwidth
    ),
)


def described(model: CostModel, **more) -> dict:
    names = ("graph_rows", "decode_graphs", "prefill_graph_rows", "overlap")
    return {
        **{"device": "NVIDIA H200", "model": "m", "attention": "fa3", "tp_size": 1},
        "shape": dataclasses.asdict(model.shape),
        "coefficients": dataclasses.asdict(model.coefficients),
        "decode_sizes": list(model.decode_sizes),
        **{name: getattr(model, name) for name in names},
        **more,
    }


def iterations(start: float):
    """Trace lines of decode and of layer groups, timed by TRUTH."""
    now = start
    for requests in (1, 2, 4, 8, 16, 32):
        for tokens in (0, 512, 2048, 8192):
            decode = DecodeWork(requests, requests * 2000)
            line, layers = TRUTH.decode(decode), 0
            if tokens:
                line = TRUTH.merged(decode, CohortWork.of_prompt(tokens)).at(True, False)
                layers = 12
            record = {
                **{"time": now, "kind": "merged" if tokens else "decode"},
                **{"decode": ["d"] * requests, "decode_context": requests * 2000},
                **{"cohort": [["p", 0, tokens]] if tokens else [], "seconds": line.seconds(layers)},
                "layers": [0, layers] if tokens else None,
            }
            yield from [json.dumps({**record, "time": now + i}) for i in range(4)]
            now += 10


@pytest.fixture
def folder(tmp_path):
    """One server's trace with a warm-up before its run, and a server that wrote none."""
    out = tmp_path / "results"
    (out / "traces").mkdir(parents=True)
    costs = described(START)
    systems = {
        "stock": {"server_info": {}},
        "slo-40": {"server_info": {"layered_sglang": {"cost_model": costs}}},
    }
    (out / "systems.json").write_text(json.dumps({"systems": systems}))
    slow = json.dumps({**json.loads(next(iterations(0.0))), "seconds": 9.0})
    lines = [slow, *iterations(100.0), '{"time"']
    (out / "traces" / "slo-40-0.jsonl").write_text("\n".join(lines))
    runs = [
        {"system": "stock", "trace": None, "monotonic": [0.0, 50.0]},
        {"system": "fixed", "trace": "slo-40-0.jsonl", "monotonic": [100.0, 500.0]},
    ]
    (out / "runs.jsonl").write_text("\n".join(map(json.dumps, runs)))
    return out


def test_iterations_of_the_runs_are_read_and_those_of_the_warm_up_are_not(folder):
    costs, rows = read_stored(folder)
    assert costs["device"] == "NVIDIA H200"
    assert len(rows) == 6 * 4 * 4
    assert max(row.seconds for row in rows) < 1


def test_a_fit_to_them_finds_the_gpu_and_starts_no_server(folder, tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert calibrate.main(["--out", str(out), "--from", str(folder)]) == 0
    profile = CostProfile.read(out)
    assert profile.device == "NVIDIA H200"
    assert profile.quality["held_out"]["median_error"] < 0.02
    fitted = profile.coefficients.expert_bandwidth / TRUTH.coefficients.expert_bandwidth
    assert fitted == pytest.approx(1, abs=0.1)
    assert profile.made["server_flags"] == "bench run results"


def test_servers_that_differ_are_not_fitted_together(folder):
    systems = json.loads((folder / "systems.json").read_text())
    other = described(START, attention="triton")
    systems["systems"]["other"] = {"server_info": {"layered_sglang": {"cost_model": other}}}
    (folder / "systems.json").write_text(json.dumps(systems))
    (folder / "traces" / "other-0.jsonl").write_text("\n".join(iterations(100.0)))
    run = {"system": "other", "trace": "other-0.jsonl", "monotonic": [100.0, 500.0]}
    with open(folder / "runs.jsonl", "a") as file:
        file.write("\n" + json.dumps(run))
    with pytest.raises(CalibrationError, match="servers that differ in attention; keep one"):
        read_stored(folder)


def test_what_cannot_be_fitted_is_one_line(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "p.json"), "--from"]
    assert calibrate.main([*out, str(tmp_path)]) == 2
    assert "holds no results of bench run" in capsys.readouterr().err
    assert calibrate.main([*out, str(folder), "--", "--model-path", "m"]) == 2
    assert "--from starts no server" in capsys.readouterr().err
    (folder / "runs.jsonl").write_text("")
    assert calibrate.main([*out, str(folder)]) == 2
    error = capsys.readouterr().err
    assert "has no iterations of a server that plans layer groups" in error
    assert error.count("\n") == 1
