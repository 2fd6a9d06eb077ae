"""Random LoRA adapters of a model's attention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 8
NAMES = ("first", "second", "third")


def write_adapter(config: Mapping[str, Any], folder: Path, seed: int) -> Path:
    """A random adapter, in PEFT's format, of a model whose config.json holds ``config``."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, pairs = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    sizes = {"q_proj": (hidden, heads), "k_proj": (hidden, pairs), "v_proj": (hidden, pairs)}
    sizes["o_proj"] = (heads, hidden)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            b = torch.randn(outputs, RANK, generator=generator) / RANK**0.5
            if name == "o_proj":
                b[:8] = 0.0  # the channels that choose experts: near ties would tell rounding apart
            tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(sizes)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter | {"bias": "none"}))
    return folder


def adapter_paths(config: Mapping[str, Any], folder: Path) -> list[str]:
    """``NAME=PATH`` of three random adapters, which are written to ``folder``."""
    return [f"{n}={write_adapter(config, folder / n, seed)}" for seed, n in enumerate(NAMES)]
