"""Sizes of a model that decide what an iteration costs: weights, expert loads, KV, multiplications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

#: Rows choose experts as if there were ``rows ** spread`` independent ones. Trained routers repeat
#: themselves: 0.7 gives 52% and 85% of 128 experts (top 8) at 32 and 128 rows, where 55% and 86% were
#: published for Qwen3-30B-A3B (arXiv 2510.08055). Random weights route independently: 1.
SPREAD_TRAINED = 0.7
SPREAD_RANDOM = 1.0


#: What ``config.json`` calls the number of routed experts, by model.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: And how many of them a token visits.
_TOP_K = ("num_experts_per_tok", "moe_k")


def num_experts(config: Mapping[str, Any]) -> int:
    """Routed experts of a layer by a Hugging Face ``config.json``; 0: the model is dense."""
    if config.get("model_type") == "qwen3_5_text":
        # Dense; its configuration class in SGLang fills in the experts of the class it is made of.
        return 0
    return next((int(config[name]) for name in _EXPERTS if config.get(name)), 0)


def experts_per_token(config: Mapping[str, Any]) -> int:
    """How many of its layer's experts a token visits; 1 where the configuration does not say."""
    return next((int(config[name]) for name in _TOP_K if config.get(name)), 1)


class LayerKind(NamedTuple):
    """What tells one layer from another, for one tensor-parallel rank.

    Attributes:
        dense_params: weights that every row passes in this layer.
        expert_params: weights of one of its routed experts; 0 without any.
        window: tokens that a query attends to; 0: all before it.
        state: numbers (float32) of a request's state, where the layer has one in the place of keys and
            values; else 0.
    """

    dense_params: float
    expert_params: float
    window: int = 0
    state: float = 0.0


@dataclass(frozen=True)
class ModelShape:
    """One tensor-parallel rank's part of a model. Sizes are parameters (not bytes) of one layer, on
    average where layers differ.

    Attributes:
        num_layers: layers of the model.
        dense_params: weights that every row passes: attention, router, shared experts, dense MLP.
        expert_params: weights of one routed expert; 0 in a dense model.
        experts: routed experts of a layer; 0 in a dense model.
        topk: experts that a row visits.
        head_params: the output head, once an iteration.
        kv_size: numbers in the KV cache per token.
        attention_size: query heads × head dimension; with latent attention the mean of the dimensions
            of expanded keys and values.
        dtype_bytes: bytes of a weight and of a KV number.
        spread: see :data:`SPREAD_TRAINED`.
        layers: what the layers are, one by one; empty where they are all alike and see everything.
    """

    num_layers: int
    dense_params: float
    expert_params: float
    experts: int
    topk: int
    head_params: float
    kv_size: float
    attention_size: float
    dtype_bytes: int = 2
    spread: float = SPREAD_TRAINED
    layers: tuple[LayerKind, ...] = ()

    @cached_property
    def kinds(self) -> tuple[tuple[LayerKind, int], ...]:
        """The kinds of layers, and how many there are of each."""
        alike = [LayerKind(self.dense_params, self.expert_params)] * self.num_layers
        return tuple(Counter(self.layers or alike).items())

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelShape:
        """The shape that ``dataclasses.asdict`` and JSON made ``values`` of."""
        layers = tuple(LayerKind(*layer) for layer in values.get("layers", ()))
        return ModelShape(**{**values, "layers": layers})

    def experts_reached(self, rows: float) -> float:
        """Expected number of distinct experts that ``rows`` rows visit in a layer."""
        if self.experts == 0 or rows <= 0:
            return 0.0
        return self.experts * (1 - (1 - self.topk / self.experts) ** (rows**self.spread))

    @staticmethod
    def from_config(
        config: Mapping[str, Any],
        dtype_bytes: int = 2,
        tp_size: int = 1,
        spread: float = SPREAD_TRAINED,
    ) -> ModelShape:
        """The shape of a Hugging Face ``config.json`` (Qwen, Mixtral, GLM, gpt-oss, DeepSeek, Llama and
        their kin).

        Raises:
            ValueError: naming the first size that the config lacks.
        """

        def size(*names: str, default: float | None = None) -> float:
            for name in names:
                if config.get(name) is not None:
                    return config[name]
            if default is None:
                raise ValueError(f"the model's config has no {names[0]}")
            return default

        layers, hidden = int(size("num_hidden_layers")), size("hidden_size")
        heads = size("num_attention_heads")
        if config.get("kv_lora_rank"):
            attention, kv_size, attention_size = _latent_attention(config, tp_size)
        else:
            head_dim = size("head_dim", default=hidden / heads)
            kv_heads = max(size("num_key_value_heads", default=heads), tp_size)
            attention = hidden * head_dim * (2 * heads + 2 * kv_heads) / tp_size
            kv_size = 2 * kv_heads * head_dim / tp_size
            attention_size = heads * head_dim
        interval, linear = int(size("full_attention_interval", default=1)), None
        if interval > 1:
            linear = _linear_attention(config, tp_size)
            attention += hidden * heads * head_dim / tp_size  # the gate of what it gives
        experts = num_experts(config)
        inter = size("intermediate_size", "moe_intermediate_size")
        expert_inter = size("moe_intermediate_size", default=inter) if experts else 0
        first = size("first_k_dense_replace", "moe_layer_start_index", default=0)
        dense_layers = int(first) if experts else layers
        shared = size("shared_expert_intermediate_size", default=0)
        shared += size("n_shared_experts", "moe_num_shared_experts", default=0) * expert_inter
        mlp = 3 * hidden * inter / tp_size
        with_experts = (hidden * experts + 3 * hidden * shared) / tp_size
        expert = 3 * hidden * expert_inter / tp_size
        kinds = []
        for layer, window in enumerate(_windows(config, layers)):
            if linear is not None and (layer + 1) % interval:
                rest = with_experts if experts else mlp
                kinds.append(LayerKind(linear[0] + rest, expert, state=linear[1]))
            elif layer < dense_layers:
                kinds.append(LayerKind(attention + mlp, 0.0, window))
            else:
                kinds.append(LayerKind(attention + with_experts, expert, window))
        return ModelShape(
            num_layers=layers,
            dense_params=sum(kind.dense_params for kind in kinds) / layers,
            expert_params=sum(kind.expert_params for kind in kinds) / layers,
            experts=experts,
            topk=experts_per_token(config) if experts else 0,
            head_params=size("vocab_size") * hidden / tp_size,
            kv_size=kv_size,
            attention_size=attention_size / tp_size,
            dtype_bytes=dtype_bytes,
            spread=spread,
            layers=tuple(kinds) if len(set(kinds)) > 1 or kinds[0].window else (),
        )


def _windows(config: Mapping[str, Any], layers: int) -> list[int]:
    """Tokens that a query of each layer attends to; 0: all before it."""
    types = config.get("layer_types")
    window = config.get("sliding_window")
    if not types or not window:
        return [0] * layers
    return [int(window) if kind == "sliding_attention" else 0 for kind in types[:layers]]


def _linear_attention(config: Mapping[str, Any], tp_size: int) -> tuple[float, float]:
    """One rank's weights of a gated delta net, and the numbers of a request's state: a matrix a head."""
    hidden, value_heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = value_heads * config["linear_value_head_dim"]
    projections = hidden * (2 * keys + 3 * values + 2 * value_heads)
    convolution = (2 * keys + values) * config["linear_conv_kernel_dim"]
    return (projections + convolution) / tp_size, values * config["linear_key_head_dim"] / tp_size


def _latent_attention(config: Mapping[str, Any], tp_size: int) -> tuple[float, float, float]:
    """One rank's weights of latent attention, its numbers in the KV cache per token, and half of what
    all heads multiply for a (query, key) pair of a prompt (which elsewhere is heads × dimension).

    Every rank holds the narrow projections and the whole cache, and has its share of the heads. Keys
    and values of prompts are expanded; decode, which is priced by the bytes it reads, expands nothing.
    """
    hidden, heads, latent = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["kv_lora_rank"],
    )
    plain, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value, narrow = config["v_head_dim"], config.get("q_lora_rank")
    queries = heads * (plain + rotated)
    everywhere = hidden * (latent + rotated) + (0 if narrow is None else hidden * narrow)
    shared = queries * (hidden if narrow is None else narrow)
    shared += heads * (latent * (plain + value) + hidden * value)
    return everywhere + shared / tp_size, latent + rotated, (queries + heads * value) / 2
