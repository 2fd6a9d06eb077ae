"""Which tiny model stands for which architecture, and which test shows that its answers are SGLang's."""

from __future__ import annotations

#: Served: ``test_models.py``. Qwen3-MoE is what ``test_scenarios.py`` serves.
SERVED = {
    "DeepseekV2ForCausalLM": "tiny-deepseek-v2",
    "DeepseekV3ForCausalLM": "tiny-deepseek-v3",
    "Ernie4_5_MoeForCausalLM": "tiny-ernie4.5-moe",
    "Glm4MoeForCausalLM": "tiny-glm4-moe",
    "Glm4MoeLiteForCausalLM": "tiny-glm4-moe-lite",
    "GptOssForCausalLM": "tiny-gpt-oss",
    "LlamaForCausalLM": "tiny-llama",
    "MiniMaxM2ForCausalLM": "tiny-minimax-m2",
    "MixtralForCausalLM": "tiny-mixtral",
    "OlmoeForCausalLM": "tiny-olmoe",
    "Qwen2MoeForCausalLM": "tiny-qwen2-moe",
    "Qwen3ForCausalLM": "tiny-qwen3",
    "Qwen3NextForCausalLM": "tiny-qwen3-next",
    "Qwen3_5ForConditionalGeneration": "tiny-qwen3.5",
    "Qwen3_5MoeForCausalLM": "tiny-qwen3.5-moe-text",
    "Qwen3_5MoeForConditionalGeneration": "tiny-qwen3.5-moe",
}

#: Without a server, layer group by layer group: ``test_by_layer_groups.py``. What the scheduler does is
#: the same as for a served one that is like them.
BY_LAYER_GROUPS = {
    "MistralForCausalLM": "tiny-mistral",
    "Phi3ForCausalLM": "tiny-phi3",
    "Qwen2ForCausalLM": "tiny-qwen2",
    "Qwen3VLMoeForConditionalGeneration": "tiny-qwen3-vl-moe",
    "Qwen3_5ForCausalLM": "tiny-qwen3.5-text",
}
