"""A calibration of a real server, on a tiny grid."""

from __future__ import annotations

import pytest
from layered_sglang import calibrate
from layered_sglang.calibration.traffic import Grid
from layered_sglang.scheduling.profile import CostProfile


@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_real_server_is_calibrated(make_model, started, capsys, tmp_path, monkeypatch):
    grid = Grid((1, 4), (64,), (32, 200, 400), (2.0, None))
    monkeypatch.setattr(calibrate, "QUICK", grid)
    out = tmp_path / "p.json"
    flags = ["--model-path", str(make_model()), "--layered-max-prefill-tokens", "512"]
    flags += ["--max-total-tokens", "20000"]
    assert calibrate.main(["--out", str(out), "--quick", "--", *flags]) == 0
    assert len(started.servers) == 1
    profile = CostProfile.read(out)
    assert profile.device == "cpu" and profile.model == "Qwen3MoeForCausalLM 8x64 experts 16"
    kinds = profile.quality["held_out"]["by_kind"]
    assert {"decode", "merged"} <= set(kinds)
    assert profile.quality["held_out"]["iterations"] > 0
    assert str(out) in capsys.readouterr().out
