"""Draft models for speculative decoding, as random as the models that they guess for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layered_sglang.model_zoo.tensors import head_dim

#: Fields that a draft has in common with its model.
_KEPT = (
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "torch_dtype",
    "vocab_size",
)


def eagle3_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json of an EAGLE-3 draft: one layer that reads the hidden states of three of the
    model's layers, and guesses tokens of its whole vocabulary."""
    return {
        **{name: model[name] for name in _KEPT if name in model},
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": model["vocab_size"],
        "model_type": "llama",
        "num_hidden_layers": 1,
    }


def write_eagle3_draft(model: Mapping[str, Any], folder: Path, *, weights: bool = True) -> Path:
    """Write the folder of a draft for the model that has this config.json; returns the folder.

    weights: random ones too, for a draft of which next to nothing is accepted; otherwise config.json
        alone, for dummy weights.
    """
    config = eagle3_config(model)
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        _write_weights(config, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _matrices(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * head_dim(config)
    keys = config["num_key_value_heads"] * head_dim(config)
    yield "fc", (hidden, 3 * hidden)
    # The layer reads the last token's embedding beside what fc makes of the hidden states.
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"midlayer.self_attn.{name}_proj", (rows, 2 * hidden)
    yield "midlayer.self_attn.o_proj", (hidden, queries)
    yield "midlayer.mlp.gate_proj", (inter, hidden)
    yield "midlayer.mlp.up_proj", (inter, hidden)
    yield "midlayer.mlp.down_proj", (hidden, inter)
    yield "lm_head", (config["draft_vocab_size"], hidden)


def _write_weights(config: Mapping[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, config.get("torch_dtype", "float32"))
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{name}.weight": (torch.randn(size, generator=generator) / size[1] ** 0.5).to(dtype)
        for name, size in _matrices(config)
    }
    norms = ("norm", "midlayer.hidden_norm", "midlayer.input_layernorm")
    for name in (*norms, "midlayer.post_attention_layernorm"):
        tensors[f"{name}.weight"] = torch.ones(config["hidden_size"], dtype=dtype)
    save_file(tensors, path)
