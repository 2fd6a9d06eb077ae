"""Sizes of a model that decide what an iteration costs: weights, expert loads, KV, multiplications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Rows choose experts as if there were ``rows ** spread`` independent ones. Trained routers repeat
#: themselves: 0.7 gives 52% and 85% of 128 experts (top 8) at 32 and 128 rows, where 55% and 86% were
#: published for Qwen3-30B-A3B (arXiv 2510.08055). Random weights route independently: 1.
SPREAD_TRAINED = 0.7
SPREAD_RANDOM = 1.0


#: What ``config.json`` calls the number of routed experts, by model.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def num_experts(config: Mapping[str, Any]) -> int:
    """Routed experts of a layer by a Hugging Face ``config.json``; 0: the model is dense."""
    return next((int(config[name]) for name in _EXPERTS if config.get(name)), 0)


@dataclass(frozen=True)
class ModelShape:
    """One tensor-parallel rank's part of a model. Sizes are parameters (not bytes) of one layer.

    Attributes:
        num_layers: layers of the model.
        dense_params: weights that every row passes: attention, router, shared experts, dense MLP.
        expert_params: weights of one routed expert; 0 in a dense model.
        experts: routed experts of a layer; 0 in a dense model.
        topk: experts that a row visits.
        head_params: the output head, once an iteration.
        kv_size: numbers in the KV cache per token.
        attention_size: query heads × head dimension.
        dtype_bytes: bytes of a weight and of a KV number.
        spread: see :data:`SPREAD_TRAINED`.
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
        """The shape of a Hugging Face ``config.json`` (Qwen, Mixtral, GLM, Llama and their kin).

        Layers are averaged where some are dense and others hold experts.

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
        head_dim = size("head_dim", default=hidden / heads)
        kv_heads = max(size("num_key_value_heads", default=heads), tp_size)
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        experts = num_experts(config)
        inter = size("intermediate_size")
        expert_inter = size("moe_intermediate_size", default=inter) if experts else 0
        dense_layers = int(size("first_k_dense_replace", default=0)) if experts else layers
        shared = size("shared_expert_intermediate_size", default=0)
        shared += size("n_shared_experts", default=0) * expert_inter
        share = (layers - dense_layers) / layers  # of the layers, with experts
        dense = attention + 3 * hidden * inter * (1 - share)
        dense += (hidden * experts + 3 * hidden * shared) * share
        return ModelShape(
            num_layers=layers,
            dense_params=dense / tp_size,
            expert_params=3 * hidden * expert_inter * share / tp_size,
            experts=experts,
            topk=int(size("num_experts_per_tok", default=1)) if experts else 0,
            head_params=size("vocab_size") * hidden / tp_size,
            kv_size=2 * kv_heads * head_dim / tp_size,
            attention_size=heads * head_dim / tp_size,
            dtype_bytes=dtype_bytes,
            spread=spread,
        )
