"""The models whose layers can be run group by group.

The mechanism drives a model through its own ``forward`` as a pipeline stage (``layer_range.py``), so
any SGLang model that can be pipelined with ``hidden_states`` and ``residual`` as its only carried
state is one entry here; so is one that cannot, if its stack is no more than its layers in a row. Each
entry has a token-equality test in ``tests/server``.
"""

from __future__ import annotations

from dataclasses import dataclass

from layered_sglang.config import ConfigError


@dataclass(frozen=True)
class Architecture:
    """How to reach the parts of a SGLang ``…ForCausalLM`` model.

    Attributes:
        stack: attribute that holds the decoder (embedding, layers, final norm).
        experts: whether it has mixture-of-experts layers (dense models gain nothing in bytes).
        latent: whether its attention is latent (MLA). A prompt's keys and values are then expanded
            from the narrow vectors in the cache, while decode attends to these as they are
            (``latent_attention.py``).
        windows: whether some layers attend to a window, and keep their keys in a pool of their own.
        linear: whether some layers have linear attention: a state a request, changed by every token, in
            a pool of their own.
        staged: whether the decoder runs as a pipeline stage. If not, its layers are called one by one.
        images: whether its prompts may hold images. Those that do are never layered; of all others the
            model takes three positions a token where its configuration says so.
    """

    stack: str = "model"
    experts: bool = True
    latent: bool = False
    windows: bool = False
    linear: bool = False
    staged: bool = True
    images: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": Architecture(latent=True),
    "DeepseekV3ForCausalLM": Architecture(latent=True),
    "Ernie4_5_MoeForCausalLM": Architecture(staged=False),
    "Glm4MoeForCausalLM": Architecture(),
    "Glm4MoeLiteForCausalLM": Architecture(latent=True),
    "GptOssForCausalLM": Architecture(windows=True),
    "LlamaForCausalLM": Architecture(experts=False),
    "MiniMaxM2ForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(experts=False),
    "MixtralForCausalLM": Architecture(),
    "OlmoeForCausalLM": Architecture(staged=False),
    "Phi3ForCausalLM": Architecture(experts=False),
    "Qwen2ForCausalLM": Architecture(experts=False),
    "Qwen2MoeForCausalLM": Architecture(),
    "Qwen3ForCausalLM": Architecture(experts=False),
    "Qwen3MoeForCausalLM": Architecture(),
    "Qwen3NextForCausalLM": Architecture(linear=True, staged=False),
    "Qwen3VLMoeForConditionalGeneration": Architecture(images=True),
    "Qwen3_5ForCausalLM": Architecture(experts=False, linear=True, staged=False),
    "Qwen3_5ForConditionalGeneration": Architecture(
        experts=False, linear=True, staged=False, images=True
    ),
    "Qwen3_5MoeForCausalLM": Architecture(linear=True, staged=False),
    "Qwen3_5MoeForConditionalGeneration": Architecture(linear=True, staged=False, images=True),
}


def architecture_of(names: list[str]) -> Architecture:
    """The entry for a model configuration's ``architectures``.

    Raises:
        ConfigError: when none of the names is in the registry; the message lists what is.
    """
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise ConfigError(
        f"layered prefill does not support {', '.join(names)} yet; it supports "
        f"{', '.join(sorted(ARCHITECTURES))}. Use --prefill-schedule chunked to serve this model "
        "with SGLang's own prefill"
    )
