"""The registry of models: a new one is one entry of _ENTRIES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from layered_sglang.model_zoo import published, tiny


@dataclass(frozen=True)
class Preset:
    """A model that make_model can write.

    config: the fields of config.json.
    random_weights: write random weights and a tokenizer too; otherwise config.json alone, for
        serving with dummy weights.
    """

    name: str
    summary: str
    config: Mapping[str, Any]
    random_weights: bool


class UnknownPresetError(ValueError):
    """A preset was named that is not in the registry."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")


def find_preset(name: str) -> Preset:
    """Return the preset of this name; raises UnknownPresetError, which lists those there are."""
    if name not in PRESETS:
        raise UnknownPresetError(name)
    return PRESETS[name]


_ENTRIES = (
    Preset("tiny", "Qwen3-MoE, 8 layers, 16 experts, top-4", tiny.QWEN3_MOE, True),
    Preset("tiny-mixtral", "Mixtral, 8 layers, 8 experts, top-2", tiny.MIXTRAL, True),
    Preset(
        "tiny-glm4-moe",
        "GLM-4 MoE, 1 dense and 7 MoE layers, 16 experts, top-4, a shared expert",
        tiny.GLM4_MOE,
        True,
    ),
    Preset(
        "tiny-gpt-oss",
        "gpt-oss, 8 layers, every other with a window of 32 tokens, 16 experts, top-4",
        tiny.GPT_OSS,
        True,
    ),
    Preset(
        "tiny-qwen2-moe",
        "Qwen2-MoE, 8 layers, 8 experts, top-2, a gated shared expert",
        tiny.QWEN2_MOE,
        True,
    ),
    Preset(
        "tiny-deepseek-v2",
        "DeepSeek-V2, latent attention, 1 dense and 7 MoE layers, 16 experts, top-4",
        tiny.DEEPSEEK_V2,
        True,
    ),
    Preset(
        "tiny-deepseek-v3",
        "DeepSeek-V3, latent attention, 3 dense and 5 MoE layers, 16 experts in 2 groups, top-4",
        tiny.DEEPSEEK_V3,
        True,
    ),
    Preset(
        "tiny-qwen3-next",
        "Qwen3-Next, linear attention in 6 of 8 layers, 16 experts, top-4, a gated shared expert",
        tiny.QWEN3_NEXT,
        True,
    ),
    Preset(
        "tiny-qwen3.5-moe",
        "Qwen3.5-MoE, linear attention in 6 of 8 layers, 16 experts, top-4, takes images",
        tiny.QWEN3_5_MOE,
        True,
    ),
    Preset(
        "tiny-qwen3.5",
        "Qwen3.5, 8 dense layers, linear attention in 6 of them, takes images",
        tiny.QWEN3_5,
        True,
    ),
    Preset(
        "tiny-qwen3.5-moe-text",
        "the same as tiny-qwen3.5-moe, text only",
        tiny.QWEN3_5_MOE_TEXT,
        True,
    ),
    Preset("tiny-qwen3.5-text", "the same as tiny-qwen3.5, text only", tiny.QWEN3_5_TEXT, True),
    Preset(
        "tiny-qwen3-vl-moe",
        "Qwen3-VL-MoE, 8 layers, 16 experts, top-4, takes images",
        tiny.QWEN3_VL_MOE,
        True,
    ),
    Preset(
        "tiny-glm4-moe-lite",
        "GLM-4.7-Flash, latent attention, 1 dense and 7 MoE layers, 16 experts, top-4",
        tiny.GLM4_MOE_LITE,
        True,
    ),
    Preset(
        "tiny-ernie4.5-moe",
        "ERNIE-4.5-MoE, 1 dense and 7 MoE layers, 8 experts, top-2, shared experts",
        tiny.ERNIE4_5_MOE,
        True,
    ),
    Preset("tiny-minimax-m2", "MiniMax-M2, 8 layers, 16 experts, top-4", tiny.MINIMAX_M2, True),
    Preset("tiny-olmoe", "OLMoE, 8 layers, 8 experts, top-2", tiny.OLMOE, True),
    Preset("tiny-llama", "Llama, 8 dense layers", tiny.LLAMA, True),
    Preset("tiny-mistral", "Mistral, 8 dense layers", tiny.MISTRAL, True),
    Preset("tiny-phi3", "Phi-3, 8 dense layers", tiny.PHI3, True),
    Preset("tiny-qwen2", "Qwen2, 8 dense layers", tiny.QWEN2, True),
    Preset("tiny-qwen3", "Qwen3, 8 dense layers", tiny.QWEN3, True),
    Preset("qwen3-30b-a3b", "Qwen3-30B-A3B as published", published.QWEN3_30B_A3B, False),
    Preset("gpt-oss-20b", "gpt-oss-20b as published", published.GPT_OSS_20B, False),
    Preset("mixtral-8x7b", "Mixtral-8x7B-v0.1 as published", published.MIXTRAL_8X7B, False),
    Preset("deepseek-v2-lite", "DeepSeek-V2-Lite as published", published.DEEPSEEK_V2_LITE, False),
    Preset(
        "qwen3-next-80b-a3b",
        "Qwen3-Next-80B-A3B as published",
        published.QWEN3_NEXT_80B_A3B,
        False,
    ),
    Preset("qwen3-8b", "Qwen3-8B as published, a dense model", published.QWEN3_8B, False),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
