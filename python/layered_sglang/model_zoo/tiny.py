"""config.json of the tiny models: a full architecture each, small enough to run on a CPU.

Heads, experts and widths divide by tensor-parallel sizes 2 and 4. The rotated part of a head is 64
wide, the narrowest that SGLang's GPU kernels take.
"""

from __future__ import annotations

from typing import Any

from layered_sglang.model_zoo.tokenizer import (
    CHAT_END_ID,
    END_OF_TEXT_ID,
    IMAGE_ID,
    VIDEO_ID,
    VISION_END_ID,
    VISION_START_ID,
    VOCAB_SIZE,
)

_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": CHAT_END_ID,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "pad_token_id": END_OF_TEXT_ID,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    # float32: tests compare tokens and logits exactly, not to half a percent.
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}

QWEN3_MOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_window_layers": 8,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "use_sliding_window": False,
}

MIXTRAL: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    # SGLang's Mixtral takes hidden_size / num_attention_heads for the head, whatever head_dim says.
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}

# A dense first layer, a shared expert, sigmoid routing with a correction bias and a scaling factor,
# rotary embedding on half of each head, biases and norms on queries and keys: as GLM-4.5 has.
GLM4_MOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 4,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "use_qk_norm": True,
}

LLAMA: dict[str, Any] = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "mlp_bias": False,
}

# As Llama; its heads need not divide the width.
MISTRAL: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "head_dim": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "sliding_window": None,
}

# As Llama; its checkpoints join the projections that have the same input.
PHI3: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 256,
    "intermediate_size": 256,
    "original_max_position_embeddings": 8192,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}

# As Llama, biases on queries, keys and values.
QWEN2: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 256,
    "max_window_layers": 8,
    "sliding_window": None,
    "use_sliding_window": False,
}

QWEN3: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 64,
    "intermediate_size": 256,
    "max_window_layers": 8,
    "sliding_window": None,
    "use_sliding_window": False,
}

# A shared expert behind a gate of its own, weights of the chosen experts not normalised, biases on
# queries, keys and values: as Qwen1.5-MoE and Qwen2-57B-A14B have.
QWEN2_MOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 256,
    "intermediate_size": 128,
    "max_window_layers": 8,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
    "sliding_window": None,
    "use_sliding_window": False,
}

# Linear attention in three layers of four, its values in more heads than its keys; full attention with a
# gate on its output, rotary embedding on half of each head, a shared expert behind a gate: as
# Qwen3-Next has.
QWEN3_NEXT: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 32,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
}

# What reads images: two layers, patches of 16 by 16 pixels, four of them a token.
_VISION: dict[str, Any] = {
    "deepstack_visual_indexes": [],
    "depth": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "num_heads": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

_IMAGE_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_ID,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "video_token_id": VIDEO_ID,
    "vision_end_token_id": VISION_END_ID,
    "vision_start_token_id": VISION_START_ID,
}

# As Qwen3-Next, and positions of three numbers each, which differ for images only.
_QWEN3_5_TEXT: dict[str, Any] = {
    **{key: value for key, value in _COMMON.items() if key not in ("rope_scaling", "rope_theta")},
    "attention_bias": False,
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "head_dim": 128,
    "hidden_size": 64,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 32,
    "mlp_only_layers": [],
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
}

_QWEN3_5_MOE_TEXT: dict[str, Any] = {
    **_QWEN3_5_TEXT,
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
}

_QWEN3_5_DENSE_TEXT: dict[str, Any] = {
    **_QWEN3_5_TEXT,
    "intermediate_size": 256,
    "model_type": "qwen3_5_text",
}

QWEN3_5_MOE: dict[str, Any] = {
    **_IMAGE_TOKENS,
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": _QWEN3_5_MOE_TEXT,
    "vision_config": {**_VISION, "model_type": "qwen3_5_moe"},
}

QWEN3_5: dict[str, Any] = {
    **_IMAGE_TOKENS,
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": _QWEN3_5_DENSE_TEXT,
    "vision_config": {**_VISION, "model_type": "qwen3_5"},
}

# The same without what reads images: a fine-tune's checkpoint holds the language model alone.
QWEN3_5_MOE_TEXT: dict[str, Any] = {
    **_QWEN3_5_MOE_TEXT,
    "architectures": ["Qwen3_5MoeForCausalLM"],
}

QWEN3_5_TEXT: dict[str, Any] = {**_QWEN3_5_DENSE_TEXT, "architectures": ["Qwen3_5ForCausalLM"]}

# As Qwen3-MoE, with positions of three numbers each; all experts of a layer in one tensor. What the
# encoder's own layers give is added behind the first decoder layers: only where images are.
QWEN3_VL_MOE: dict[str, Any] = {
    **_IMAGE_TOKENS,
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": {
        **{key: QWEN3_MOE[key] for key in QWEN3_MOE if key != "architectures"},
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 128,  # transformers tells the experts' dimensions by their sizes
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [12, 10, 10],
            "rope_type": "default",
        },
    },
    "vision_config": {
        **_VISION,
        "deepstack_visual_indexes": [0, 1, 2],  # SGLang takes exactly three
        "depth": 3,
        "model_type": "qwen3_vl_moe",
    },
}

_DEEPSEEK: dict[str, Any] = {
    **_COMMON,
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 32,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 256,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "v_head_dim": 64,
}

# Multi-head latent attention with full queries, stretched rotary embedding, a dense first layer, two
# shared experts, softmax routing that is not normalised: as DeepSeek-V2-Lite has.
DEEPSEEK_V2: dict[str, Any] = {
    **_DEEPSEEK,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "n_group": 1,
    "norm_topk_prob": False,
    "q_lora_rank": None,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
}

# Narrow queries, three dense layers, one shared expert, sigmoid routing with a correction bias within a
# group of experts, a scaling factor: as DeepSeek-V3, R1 and Kimi-K2 have.
DEEPSEEK_V3: dict[str, Any] = {
    **_DEEPSEEK,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "n_group": 2,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "q_lora_rank": 64,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 1,
    "topk_method": "noaux_tc",
}

# Latent attention with narrow queries, a dense first layer, one shared expert, sigmoid routing with a
# correction bias and a scaling factor: as GLM-4.7-Flash has.
GLM4_MOE_LITE: dict[str, Any] = {
    **{key: value for key, value in _DEEPSEEK.items() if key not in ("moe_layer_freq",)},
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "q_lora_rank": 64,
    "rope_scaling": None,
    "routed_scaling_factor": 1.8,
    "topk_group": 1,
    "topk_method": "noaux_tc",
}

# A dense first layer, two shared experts, softmax routing with a correction bias, rotary embedding of
# neighbouring channels: as ERNIE-4.5 has.
ERNIE4_5_MOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "head_dim": 64,
    "hidden_size": 256,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "moe_k": 2,
    "moe_layer_end_index": 7,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 2,
    "use_bias": False,
}

# One norm over the queries of all heads and one over the keys, rotary embedding on half of each head,
# sigmoid routing with a correction bias: as MiniMax-M2 has.
MINIMAX_M2: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "head_dim": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_experts_per_tok": 4,
    "num_local_experts": 16,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "qk_norm_type": "per_layer",
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "scoring_func": "sigmoid",
    "use_qk_norm": True,
    "use_routing_bias": True,
}

# The same norms, weights of the chosen experts not normalised, as many heads of keys as of queries: as
# OLMoE has. SGLang takes 1e-5 for the norms, whatever the configuration says.
OLMOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "attention_bias": False,
    "clip_qkv": None,
    "hidden_size": 256,
    "intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "router_aux_loss_coef": 0.01,
}

# Windows of 32 tokens in every other layer, sinks, a bias on every projection, SwiGLU clamped where it
# matters, rotary embedding stretched from 256 positions: as gpt-oss has, its weights not quantised.
GPT_OSS: dict[str, Any] = {
    **_COMMON,
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 64,
    "initial_context_length": 256,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "num_experts_per_tok": 4,
    "num_local_experts": 16,
    "output_router_logits": False,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 256,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 32,
    "swiglu_limit": 1.5,
}
