"""Block-scaled fp8 checkpoints hold the same model, rounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layered_sglang.model_zoo import find_preset, write_model
from layered_sglang.model_zoo.block_scaled import BLOCK, block_scaled_config, quantise
from safetensors.torch import load_file


def dequantise(narrow: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    n, k = narrow.shape
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return narrow.float() * wide[:n, :k]


@pytest.mark.parametrize("shape", [(256, 128), (192, 64), (128, 300)], ids=str)
def test_a_block_keeps_its_largest_value_and_rounds_the_others(shape):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(shape, generator=generator)
    matrix[:, :7] = 0.0
    narrow, scales = quantise(matrix)
    assert narrow.dtype == torch.float8_e4m3fn and narrow.shape == matrix.shape
    assert scales.shape == tuple(-(-size // BLOCK) for size in shape)
    back = dequantise(narrow, scales)
    assert torch.all(back[:, :7] == 0)
    assert (back - matrix).abs().max() <= matrix.abs().max() / 2**4
    assert (back - matrix).norm() < 0.05 * matrix.norm()


def test_a_folder_in_fp8(tmp_path):
    preset = find_preset("tiny-deepseek-v3")
    plain = load_file(write_model(preset, tmp_path / "plain").directory / "model.safetensors")
    scaled = replace(preset, config=block_scaled_config(preset.config))
    loaded = load_file(write_model(scaled, tmp_path / "fp8").directory / "model.safetensors")
    assert {name for name in loaded if not name.endswith("_scale_inv")} == set(plain)
    narrow = [name for name in plain if loaded[name].dtype == torch.float8_e4m3fn]
    assert any("kv_b_proj" in n for n in narrow) and any("experts.3.down_proj" in n for n in narrow)
    assert not any("norm" in n or "embed" in n or n.endswith("mlp.gate.weight") for n in narrow)
    for name in narrow:
        back = dequantise(loaded[name], loaded[f"{name}_scale_inv"])
        assert (back - plain[name]).norm() < 0.05 * plain[name].norm(), name
