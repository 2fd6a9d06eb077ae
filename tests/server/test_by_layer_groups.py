"""Architectures whose logits are SGLang's, layer group by layer group, in a process without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_layer_groups import prompts
from harness import start
from presets import BY_LAYER_GROUPS
from processes import stop

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.is_available(), reason="its models are for the CPU platform"),
]


@pytest.mark.parametrize("preset", BY_LAYER_GROUPS.values())
def test_logits_are_stock_sglangs(preset, make_model, tmp_path):
    folder, logits = make_model(preset), tmp_path / "logits.pt"
    run_module(tmp_path / "log", "by_layer_groups", str(folder), str(logits))
    expect_transformers_logits(folder, torch.load(logits))


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt-oss", "tiny-deepseek-v3", "tiny-glm4-moe"])
def test_a_draft_reads_the_same_hidden_states(preset, make_model, tmp_path):
    """EAGLE-3's: models differ in how they capture what it reads."""
    run_module(tmp_path / "log", "captured_layers", str(make_model(preset)))


def run_module(log: Path, *arguments: str) -> None:
    """A Python module of this folder, as a process of its own."""
    here = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))}
    process = start([sys.executable, "-m", *arguments], log, here)
    try:
        assert process.wait(500) == 0, log.read_text()[-3000:]
    except subprocess.TimeoutExpired:
        pytest.fail(f"never ended\n{log.read_text()[-3000:]}")
    finally:
        stop(process)


def expect_transformers_logits(folder: Path, got: torch.Tensor) -> None:
    """``got`` are SGLang's first logits of the prompts, ``[prompts, vocabulary]``: its loader, which
    passes over names that it does not know, has found every tensor of the checkpoint."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    images = "vision_config" in json.loads((folder / "config.json").read_text())
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        want = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts()[1:]]
    torch.testing.assert_close(got, torch.stack(want), atol=5e-3, rtol=0)
