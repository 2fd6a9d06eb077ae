"""benchmarks/serving/simulated.py: each cell in the simulator, and its figures beside the measured."""

from __future__ import annotations

import sys
from pathlib import Path

import layered_sglang
import pytest
from evaluation_results import write_results

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from simulated import main, system_of

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


def test_a_folder_or_a_profile_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--cost-profile", str(PROFILE)]) == 2
    assert capsys.readouterr().err.startswith(
        f"simulated: {tmp_path} holds no results of bench run"
    )
    results = write_results(tmp_path)
    assert main([str(results.folder), "--cost-profile", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
