"""Which tensors a checkpoint holds: name, shape and role, derived from config.json.

The same inventory gives the random weights of a tiny model and the parameter count of a published
one. Names are those of the published checkpoints, which SGLang's and transformers' loaders read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from math import prod
from typing import Any

Config = Mapping[str, Any]


class Role(Enum):
    """What a tensor does, which decides how its random values are scaled."""

    EMBEDDING = auto()
    NORM = auto()
    QUERY_KEY = auto()  # query and key projections
    QUERY_KEY_NORM = auto()  # RMSNorm per head, over queries or keys
    OUTPUT_NORM = auto()  # RMSNorm per head, over what linear attention gives
    VALUE = auto()
    ATTENTION_OUTPUT = auto()
    ATTENTION_BIAS = auto()  # of the query, key and value projections
    ATTENTION_OUTPUT_BIAS = auto()
    SINK = auto()  # a learnt logit per head that takes part in the softmax and has no value
    CONVOLUTION = auto()  # of linear attention: a few taps for each channel, along the tokens
    DECAY = auto()  # of linear attention: logarithm of how fast a head forgets
    DECAY_BIAS = auto()  # what is added to the part of it that the token decides
    ROUTER = auto()
    ROUTER_BIAS = auto()  # takes part in choosing the experts, not in weighting them
    ROUTER_LOGIT_BIAS = auto()  # takes part in both
    SHARED_EXPERT_GATE = auto()  # one logit a token: how much of the shared expert it takes
    GATE_UP = auto()
    DOWN = auto()
    GATE_UP_BIAS = auto()
    DOWN_BIAS = auto()
    LM_HEAD = auto()


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    routed: belongs to the routed experts, of which a token uses only the chosen ones.
    inputs_last: of experts stacked in one tensor: they are [experts, out, in], not [experts, in, out].
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    routed: bool = False
    inputs_last: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def fan_in(self) -> int:
        """Numbers that one output sums up."""
        inputs_last = self.inputs_last or len(self.shape) != 3
        return self.shape[-1 if inputs_last else -2]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, in all and in use by one token.

    active: without the experts that a token does not choose.
    embedding: the input embedding alone; some model cards leave it out of the active figure,
        because a token reads one row of it.
    """

    total: int
    active: int
    embedding: int


class UnknownArchitectureError(ValueError):
    """config.json names a model_type that this inventory does not describe."""


def text_part(config: Config) -> Config:
    """Return the part of config.json that describes the language model: all of it, unless the model also
    takes images."""
    return config.get("text_config", config)


def head_dim(config: Config) -> int:
    """Return the width of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def model_tensors(config: Config) -> Iterator[TensorSpec]:
    """Yield every tensor of the language model that config.json describes.

    What encodes images is apart (``vision.py``).

    Raises UnknownArchitectureError for a model_type that is not in the inventory.
    """
    stack = "model.language_model" if "text_config" in config else "model"
    config = text_part(config)
    model_type = config["model_type"]
    if model_type not in _LAYERS:
        known = ", ".join(sorted(_LAYERS))
        raise UnknownArchitectureError(f"unknown model_type {model_type!r}; known: {known}")
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    yield TensorSpec(f"{stack}.embed_tokens.weight", (vocab, hidden), Role.EMBEDDING)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"{stack}.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield TensorSpec(f"{prefix}.{norm}.weight", (hidden,), Role.NORM)
        yield from _LAYERS[model_type](config, layer, prefix)
    yield TensorSpec(f"{stack}.norm.weight", (hidden,), Role.NORM)
    if not config["tie_word_embeddings"]:
        yield TensorSpec("lm_head.weight", (vocab, hidden), Role.LM_HEAD)


def count_parameters(config: Config) -> ParameterCount:
    """Count the parameters that config.json describes.

    Experts count one by one, so a quantised checkpoint counts its weights, not its scales.
    """
    shared = routed = embedding = 0
    for spec in model_tensors(config):
        if spec.routed:
            routed += spec.size
        else:
            shared += spec.size
        if spec.role is Role.EMBEDDING:
            embedding += spec.size
    active_experts = 0
    if routed:
        text = text_part(config)
        chosen = text.get("num_experts_per_tok") or text["moe_k"]
        active_experts = routed * chosen // experts(config)
    return ParameterCount(shared + routed, shared + active_experts, embedding)


def experts(config: Config) -> int:
    """Return the number of routed experts of a MoE layer."""
    config = text_part(config)
    for field in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if field in config:
            return config[field]
    raise UnknownArchitectureError(f"model_type {config['model_type']!r} has no routed experts")


def _attention(
    config: Config, prefix: str, *, norm: bool = False, wide_norm: bool = False, bias: str = ""
) -> Iterator[TensorSpec]:
    """Yield the attention block; bias lists the projections of "qkvo" that have one; norm is that of
    queries and keys, head by head or, wide, of all heads at once."""
    hidden, width = config["hidden_size"], head_dim(config)
    queries = config["num_attention_heads"] * width
    keys = config["num_key_value_heads"] * width
    projections = {
        "q": ((queries, hidden), Role.QUERY_KEY),
        "k": ((keys, hidden), Role.QUERY_KEY),
        "v": ((keys, hidden), Role.VALUE),
        "o": ((hidden, queries), Role.ATTENTION_OUTPUT),
    }
    for letter, (shape, role) in projections.items():
        name = f"{prefix}.self_attn.{letter}_proj"
        yield TensorSpec(f"{name}.weight", shape, role)
        if letter in bias:
            output = role is Role.ATTENTION_OUTPUT
            role = Role.ATTENTION_OUTPUT_BIAS if output else Role.ATTENTION_BIAS
            yield TensorSpec(f"{name}.bias", shape[:1], role)
    for letter, all_heads in (("q", queries), ("k", keys)):
        if norm or wide_norm:
            name = f"{prefix}.self_attn.{letter}_norm.weight"
            size = all_heads if wide_norm else width
            yield TensorSpec(name, (size,), Role.QUERY_KEY_NORM)


def _gated_mlp(
    config: Config,
    prefix: str,
    intermediate: int,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    routed: bool = False,
) -> Iterator[TensorSpec]:
    """Yield gate, up and down of a gated MLP; an expert is one too."""
    hidden = config["hidden_size"]
    gate, up, down = names
    for name in (gate, up):
        yield TensorSpec(
            f"{prefix}.{name}.weight", (intermediate, hidden), Role.GATE_UP, routed=routed
        )
    yield TensorSpec(f"{prefix}.{down}.weight", (hidden, intermediate), Role.DOWN, routed=routed)


def _dense_layer(config: Config, layer: int, prefix: str, *, norm: bool) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, norm=norm, bias="qkvo" if _has_bias(config) else "")
    yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])


def _llama_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _dense_layer(config, layer, prefix, norm=False)


def _qwen2_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, bias="qkv")
    yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])


def _phi3_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    hidden, intermediate, width = (
        config["hidden_size"],
        config["intermediate_size"],
        head_dim(config),
    )
    queries = config["num_attention_heads"] * width
    rows = queries + 2 * config["num_key_value_heads"] * width
    attention = f"{prefix}.self_attn"
    yield TensorSpec(f"{attention}.qkv_proj.weight", (rows, hidden), Role.VALUE)
    yield TensorSpec(f"{attention}.o_proj.weight", (hidden, queries), Role.ATTENTION_OUTPUT)
    yield TensorSpec(f"{prefix}.mlp.gate_up_proj.weight", (2 * intermediate, hidden), Role.GATE_UP)
    yield TensorSpec(f"{prefix}.mlp.down_proj.weight", (hidden, intermediate), Role.DOWN)


def _qwen3_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _dense_layer(config, layer, prefix, norm=True)


def _qwen3_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, norm=True, bias="qkvo" if _has_bias(config) else "")
    router = (config["num_experts"], config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.gate.weight", router, Role.ROUTER)
    for expert in range(config["num_experts"]):
        expert_prefix = f"{prefix}.mlp.experts.{expert}"
        yield from _gated_mlp(config, expert_prefix, config["moe_intermediate_size"], routed=True)


def _qwen3_vl_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, norm=True)
    hidden, intermediate = config["hidden_size"], config["moe_intermediate_size"]
    count = config["num_experts"]
    yield TensorSpec(f"{prefix}.mlp.gate.weight", (count, hidden), Role.ROUTER)
    # All experts of a layer in one tensor, gate before up.
    experts = f"{prefix}.mlp.experts"
    shape = (count, hidden, 2 * intermediate)
    yield TensorSpec(f"{experts}.gate_up_proj", shape, Role.GATE_UP, routed=True)
    shape = (count, intermediate, hidden)
    yield TensorSpec(f"{experts}.down_proj", shape, Role.DOWN, routed=True)


def _mixtral_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix)
    yield from _mixtral_experts(config, f"{prefix}.block_sparse_moe")


def _minimax_m2_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, wide_norm=True)
    block = f"{prefix}.block_sparse_moe"
    bias = (config["num_local_experts"],)
    yield TensorSpec(f"{block}.e_score_correction_bias", bias, Role.ROUTER_BIAS)
    yield from _mixtral_experts(config, block)


def _mixtral_experts(config: Config, block: str) -> Iterator[TensorSpec]:
    router = (config["num_local_experts"], config["hidden_size"])
    yield TensorSpec(f"{block}.gate.weight", router, Role.ROUTER)
    for expert in range(config["num_local_experts"]):
        yield from _gated_mlp(
            config,
            f"{block}.experts.{expert}",
            config["intermediate_size"],
            names=("w1", "w3", "w2"),
            routed=True,
        )


def _olmoe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, wide_norm=True)
    router = (config["num_experts"], config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.gate.weight", router, Role.ROUTER)
    for expert in range(config["num_experts"]):
        expert_prefix = f"{prefix}.mlp.experts.{expert}"
        yield from _gated_mlp(config, expert_prefix, config["intermediate_size"], routed=True)


def _glm4_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    bias = "qkv" if _has_bias(config) else ""
    yield from _attention(config, prefix, norm=config["use_qk_norm"], bias=bias)
    if layer < config["first_k_dense_replace"]:
        yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])
        return
    intermediate = config["moe_intermediate_size"]
    router = (config["n_routed_experts"], config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.gate.weight", router, Role.ROUTER)
    yield TensorSpec(f"{prefix}.mlp.gate.e_score_correction_bias", router[:1], Role.ROUTER_BIAS)
    for expert in range(config["n_routed_experts"]):
        yield from _gated_mlp(config, f"{prefix}.mlp.experts.{expert}", intermediate, routed=True)
    shared = intermediate * config["n_shared_experts"]
    yield from _gated_mlp(config, f"{prefix}.mlp.shared_experts", shared)


def _ernie4_5_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix)
    if layer < config["moe_layer_start_index"]:
        yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])
        return
    intermediate, count = config["moe_intermediate_size"], config["moe_num_experts"]
    yield TensorSpec(f"{prefix}.mlp.gate.weight", (count, config["hidden_size"]), Role.ROUTER)
    bias = f"{prefix}.mlp.moe_statics.e_score_correction_bias"
    yield TensorSpec(bias, (1, count), Role.ROUTER_BIAS)
    for expert in range(count):
        yield from _gated_mlp(config, f"{prefix}.mlp.experts.{expert}", intermediate, routed=True)
    shared = intermediate * config["moe_num_shared_experts"]
    yield from _gated_mlp(config, f"{prefix}.mlp.shared_experts", shared)


def _qwen2_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, bias="qkv")
    yield from _experts_and_gated_shared_expert(config, prefix)


def _experts_and_gated_shared_expert(config: Config, prefix: str) -> Iterator[TensorSpec]:
    router = (config["num_experts"], config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.gate.weight", router, Role.ROUTER)
    for expert in range(config["num_experts"]):
        expert_prefix = f"{prefix}.mlp.experts.{expert}"
        yield from _gated_mlp(config, expert_prefix, config["moe_intermediate_size"], routed=True)
    yield from _gated_shared_expert(config, prefix)


def _gated_shared_expert(config: Config, prefix: str) -> Iterator[TensorSpec]:
    shared = config["shared_expert_intermediate_size"]
    yield from _gated_mlp(config, f"{prefix}.mlp.shared_expert", shared)
    gate = (1, config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.shared_expert_gate.weight", gate, Role.SHARED_EXPERT_GATE)


def _qwen3_next_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _hybrid_attention(config, layer, prefix)
    yield from _experts_and_gated_shared_expert(config, prefix)


def _qwen3_5_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _hybrid_attention(config, layer, prefix)
    yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])


def _qwen3_5_moe_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _hybrid_attention(config, layer, prefix)
    hidden, intermediate = config["hidden_size"], config["moe_intermediate_size"]
    count = config["num_experts"]
    yield TensorSpec(f"{prefix}.mlp.gate.weight", (count, hidden), Role.ROUTER)
    # All experts of a layer in one tensor, gate above up.
    stacked = {
        "gate_up_proj": ((count, 2 * intermediate, hidden), Role.GATE_UP),
        "down_proj": ((count, hidden, intermediate), Role.DOWN),
    }
    for name, (shape, role) in stacked.items():
        full = f"{prefix}.mlp.experts.{name}"
        yield TensorSpec(full, shape, role, routed=True, inputs_last=True)
    yield from _gated_shared_expert(config, prefix)


def _hybrid_attention(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    """Yield linear attention, or full attention with a gate on its output."""
    if is_linear(config, layer):
        yield from _linear_attention(config, f"{prefix}.linear_attn")
        return
    for spec in _attention(config, prefix, norm=True):
        if spec.name.endswith("q_proj.weight"):  # each head's queries, then its gate
            queries, hidden = spec.shape
            spec = replace(spec, shape=(2 * queries, hidden))
        yield spec


def is_linear(config: Config, layer: int) -> bool:
    """Whether ``layer`` keeps a state for each request instead of keys and values for each token."""
    interval = config.get("full_attention_interval", 1)
    return (layer + 1) % interval != 0


def _linear_attention(config: Config, prefix: str) -> Iterator[TensorSpec]:
    """Yield a gated delta net: projections to queries, keys and values, the output's gate, what a token
    writes to the state and how the state decays; Qwen3-Next's checkpoints join them by key head."""
    hidden = config["hidden_size"]
    heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    keys, width = heads * config["linear_key_head_dim"], config["linear_value_head_dim"]
    values = value_heads * width
    rows = {"qkv": 2 * keys + values, "z": values, "b": value_heads, "a": value_heads}
    if config["model_type"] == "qwen3_next":
        rows = {"qkvz": 2 * keys + 2 * values, "ba": 2 * value_heads}
    for name, count in rows.items():
        yield TensorSpec(f"{prefix}.in_proj_{name}.weight", (count, hidden), Role.VALUE)
    taps = (2 * keys + values, 1, config["linear_conv_kernel_dim"])
    yield TensorSpec(f"{prefix}.conv1d.weight", taps, Role.CONVOLUTION)
    yield TensorSpec(f"{prefix}.dt_bias", (value_heads,), Role.DECAY_BIAS)
    yield TensorSpec(f"{prefix}.A_log", (value_heads,), Role.DECAY)
    yield TensorSpec(f"{prefix}.norm.weight", (width,), Role.OUTPUT_NORM)
    yield TensorSpec(f"{prefix}.out_proj.weight", (hidden, values), Role.ATTENTION_OUTPUT)


def _deepseek_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _latent_attention(config, f"{prefix}.self_attn")
    if layer < config["first_k_dense_replace"]:
        yield from _gated_mlp(config, f"{prefix}.mlp", config["intermediate_size"])
        return
    intermediate, count = config["moe_intermediate_size"], config["n_routed_experts"]
    router = (count, config["hidden_size"])
    yield TensorSpec(f"{prefix}.mlp.gate.weight", router, Role.ROUTER)
    if config.get("topk_method") == "noaux_tc":
        yield TensorSpec(f"{prefix}.mlp.gate.e_score_correction_bias", (count,), Role.ROUTER_BIAS)
    for expert in range(count):
        yield from _gated_mlp(config, f"{prefix}.mlp.experts.{expert}", intermediate, routed=True)
    shared = intermediate * config["n_shared_experts"]
    yield from _gated_mlp(config, f"{prefix}.mlp.shared_experts", shared)


def _latent_attention(config: Config, prefix: str) -> Iterator[TensorSpec]:
    """Yield multi-head latent attention: keys and values of all heads come from one narrow vector."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    plain, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value, latent = config["v_head_dim"], config["kv_lora_rank"]
    queries, narrow = heads * (plain + rotated), config["q_lora_rank"]
    if narrow is None:
        yield TensorSpec(f"{prefix}.q_proj.weight", (queries, hidden), Role.QUERY_KEY)
    else:
        yield TensorSpec(f"{prefix}.q_a_proj.weight", (narrow, hidden), Role.VALUE)
        yield TensorSpec(f"{prefix}.q_a_layernorm.weight", (narrow,), Role.NORM)
        yield TensorSpec(f"{prefix}.q_b_proj.weight", (queries, narrow), Role.QUERY_KEY)
    down = (latent + rotated, hidden)
    yield TensorSpec(f"{prefix}.kv_a_proj_with_mqa.weight", down, Role.QUERY_KEY)
    yield TensorSpec(f"{prefix}.kv_a_layernorm.weight", (latent,), Role.NORM)
    up = (heads * (plain + value), latent)
    yield TensorSpec(f"{prefix}.kv_b_proj.weight", up, Role.VALUE)
    output = (hidden, heads * value)
    yield TensorSpec(f"{prefix}.o_proj.weight", output, Role.ATTENTION_OUTPUT)


def _gpt_oss_layer(config: Config, layer: int, prefix: str) -> Iterator[TensorSpec]:
    yield from _attention(config, prefix, bias="qkvo")
    yield TensorSpec(f"{prefix}.self_attn.sinks", (config["num_attention_heads"],), Role.SINK)
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    count = config["num_local_experts"]
    yield TensorSpec(f"{prefix}.mlp.router.weight", (count, hidden), Role.ROUTER)
    yield TensorSpec(f"{prefix}.mlp.router.bias", (count,), Role.ROUTER_LOGIT_BIAS)
    # All experts of a layer in one tensor, gate and up interleaved in the last dimension.
    stacked = {
        "gate_up_proj": ((count, hidden, 2 * intermediate), Role.GATE_UP),
        "gate_up_proj_bias": ((count, 2 * intermediate), Role.GATE_UP_BIAS),
        "down_proj": ((count, intermediate, hidden), Role.DOWN),
        "down_proj_bias": ((count, hidden), Role.DOWN_BIAS),
    }
    for name, (shape, role) in stacked.items():
        yield TensorSpec(f"{prefix}.mlp.experts.{name}", shape, role, routed=True)


def _has_bias(config: Config) -> bool:
    return bool(config.get("attention_bias", False))


_LAYERS: dict[str, Callable[[Config, int, str], Iterator[TensorSpec]]] = {
    "deepseek_v2": _deepseek_layer,
    "deepseek_v3": _deepseek_layer,
    "ernie4_5_moe": _ernie4_5_moe_layer,
    "glm4_moe": _glm4_moe_layer,
    "glm4_moe_lite": _deepseek_layer,
    "gpt_oss": _gpt_oss_layer,
    "llama": _llama_layer,
    "minimax_m2": _minimax_m2_layer,
    "mistral": _llama_layer,
    "mixtral": _mixtral_layer,
    "olmoe": _olmoe_layer,
    "phi3": _phi3_layer,
    "qwen2": _qwen2_layer,
    "qwen2_moe": _qwen2_moe_layer,
    "qwen3": _qwen3_layer,
    "qwen3_5_moe_text": _qwen3_5_moe_layer,
    "qwen3_5_text": _qwen3_5_layer,
    "qwen3_moe": _qwen3_moe_layer,
    "qwen3_next": _qwen3_next_layer,
    "qwen3_vl_moe_text": _qwen3_vl_moe_layer,
}
