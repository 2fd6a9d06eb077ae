"""The command's refusals."""

from __future__ import annotations

import pytest
from layered_sglang import calibrate
from layered_sglang.calibration.traffic import Grid, Limits


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["--", "--tp", "2"], "no --model-path among the server flags"),
        (["--", "--model-path", "m", "--port", "1"], "--port is set by the calibration"),
        (["--", "--model-path", "m", "--itl-slo-ms=3"], "--itl-slo-ms is set by the calibration"),
    ],
)
def test_refusals_are_one_line(capsys, tmp_path, arguments, what):
    assert calibrate.main(["--out", str(tmp_path / "p.json"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("calibrate: ") and what in error and error.count("\n") == 1


def test_a_missing_folder_is_said_before_the_server_starts(capsys, tmp_path):
    path = tmp_path / "none" / "p.json"
    assert calibrate.main(["--out", str(path), "--", "--model-path", "m"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_grid_is_cut_to_what_the_server_holds():
    limits = Limits(50_000, 32, 4096, 8192, 1000)
    grid = Grid()
    assert max(grid.fitting_prompts(limits)) == 4096
    cells = grid.cells(limits)
    assert (1, 256) in cells and (16, 256) in cells
    assert all(batch < 32 and context + 1024 <= 8192 for batch, context in cells)
    assert all(batch * (context + 1024) + 4096 <= 50_000 for batch, context in cells)
    with pytest.raises(ValueError, match="KV slots hold none of the decode batches"):
        grid.cells(Limits(2000, 32, 512, 8192, 1000))
