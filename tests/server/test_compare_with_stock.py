"""The script behind test_answers_gpu.py, on a CPU, where every answer is SGLang's to the last token."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import harness
import pytest
import torch

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_answers_gpu.py runs it there"),
]

SERVING = Path(__file__).parents[2] / "benchmarks" / "serving"
SIZES = "--requests 6 --mixtures 1 --prompts 2 --running 2 --running-tokens 60 --start-seconds 300"
FLAGS = "--device cpu --dtype float32 --max-total-tokens 20000 --skip-server-warmup"


def test_both_servers_answer_alike(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SERVING))
    import compare_with_stock

    report = tmp_path / "report.json"
    command = [*SIZES.split(), "--log", str(tmp_path), "--report", str(report)]
    command += ["--layered=--num-layer-groups 8", "--", *FLAGS.split()]
    monkeypatch.setattr(sys, "argv", ["compare_with_stock.py", *command])
    monkeypatch.setattr(harness, "START_SECONDS", harness.START_SECONDS)  # which it sets
    with pytest.raises(SystemExit) as ended:
        compare_with_stock.main()
    found = json.loads(report.read_text())
    assert not found["problems"] and not ended.value.code
    assert found["counters"]["iterations:merged"] > 0
    for server in ("stock", "layered"):
        for traffic, result in found[server].items():
            assert result["answers"] > 0 and not result["different"], (server, traffic)
