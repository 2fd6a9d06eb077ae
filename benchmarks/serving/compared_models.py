"""The models of compare_with_stock.py: tiny presets in sizes that GPU kernels take, drafts, adapters."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters import adapter_paths
from layered_sglang.model_zoo import find_preset, write_model
from layered_sglang.model_zoo.block_scaled import block_scaled_config
from layered_sglang.model_zoo.draft import write_eagle3_draft
from layered_sglang.model_zoo.presets import Preset
from layered_sglang.model_zoo.tensors import text_part

#: What the tiny presets lack on a GPU: SGLang's fused rotary embedding takes heads of 64, 128, ..., its
#: latent attention the published widths, and block-scaled experts come in multiples of 128.
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128}
_LATENT = {
    **_WIDE,
    "kv_lora_rank": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_LINEAR = {
    **_WIDE,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "shared_expert_intermediate_size": 128,
}
GPU_SIZES = {
    "qwen3_moe": {**_WIDE, "head_dim": 128},
    "gpt_oss": {"hidden_size": 256, "intermediate_size": 256},
    "ernie4_5_moe": {"hidden_size": 256, "moe_intermediate_size": 128},
    "deepseek_v2": _LATENT,
    "deepseek_v3": {**_LATENT, "q_lora_rank": 256},
    "glm4_moe": {**_WIDE, "head_dim": 128},
    "glm4_moe_lite": {**_LATENT, "q_lora_rank": 256},
    "minimax_m2": {"hidden_size": 256, "intermediate_size": 128},
    "olmoe": {"hidden_size": 256, "intermediate_size": 128},
    "llama": {**_WIDE, "head_dim": 128},
    "mistral": {**_WIDE, "head_dim": 128},
    "mixtral": {"hidden_size": 256, "intermediate_size": 128},
    "qwen2_moe": {**_WIDE, "shared_expert_intermediate_size": 128},
    "qwen3": {**_WIDE, "head_dim": 128},
    "qwen3_next": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_vl_moe_text": {**_WIDE, "hidden_size": 512},  # not twice an expert's width, as above
}
#: Of what encodes images: heads of 64.
_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 2}

#: Draft models: a random EAGLE-3 layer or another model, of which little is accepted, and the model
#: itself.
DRAFTS = {"eagle3": "EAGLE3", "itself": "STANDALONE", "tiny-qwen3": "STANDALONE"}


def widened(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny preset's config.json with sizes that GPU kernels take."""
    text = {**text_part(config), **GPU_SIZES.get(text_part(config)["model_type"], {})}
    if "text_config" not in config:
        return text
    vision = {**config["vision_config"], **_VISION, "out_hidden_size": text["hidden_size"]}
    return {**config, "text_config": text, "vision_config": vision}


def write_folders(args: argparse.Namespace) -> None:
    """Write the model, where none was given, its draft and its adapters, which the flags then name."""
    config = dict(widened(find_preset(args.preset).config))
    config = block_scaled_config(config) if args.fp8 else config
    if "bfloat16" in args.flags:
        config["torch_dtype"] = "bfloat16"  # SGLang's gpt-oss takes it for its weights
    if args.model is None:
        args.model = tempfile.mkdtemp()
        write_model(Preset("wide", "", config, True), Path(args.model))
    if args.draft:
        draft = Path(args.model)
        if args.draft == "eagle3":
            draft = write_eagle3_draft(config, Path(tempfile.mkdtemp()))
        elif args.draft != "itself":
            draft = Path(tempfile.mkdtemp())
            other = widened(find_preset(args.draft).config) | {"torch_dtype": "bfloat16"}
            write_model(Preset("draft", "", other, True), draft)
        args.flags += ["--speculative-algorithm", DRAFTS[args.draft]]
        args.flags += ["--speculative-draft-model-path", str(draft)]
        args.flags += ["--speculative-num-steps", "3", "--speculative-eagle-topk", "1"]
        args.flags += ["--speculative-num-draft-tokens", "4"]
    if args.adapters:
        config = json.loads((Path(args.model) / "config.json").read_text())
        args.flags += ["--enable-lora", "--disable-radix-cache", "--max-loras-per-batch", "3"]
        args.flags += ["--lora-paths", *adapter_paths(config, Path(tempfile.mkdtemp()))]
