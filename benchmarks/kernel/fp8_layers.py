"""A MoE layer in block-scaled fp8 for bench_fused_moe.py: weights, our call, SGLang's call."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from layered_sglang.moe import fused_experts_fp8_workspace_bytes
from layered_sglang.moe.fp8 import BLOCK, dequantise_blocks, quantise_blocks


class Fp8Weights(NamedTuple):
    w13: torch.Tensor
    w13_scale_inv: torch.Tensor
    w2: torch.Tensor
    w2_scale_inv: torch.Tensor


def quantise_weights(w13: torch.Tensor, w2: torch.Tensor) -> Fp8Weights:
    """One expert at a time: the float32 copies stay small."""
    return Fp8Weights(*_quantise(w13), *_quantise(w2))


def dequantise_weights(weights: Fp8Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """bfloat16 weights that stand for nearly the same, for the bf16 kernels beside the fp8 ones."""
    w13 = [dequantise_blocks(*pair).bfloat16() for pair in zip(*weights[:2], strict=True)]
    w2 = [dequantise_blocks(*pair).bfloat16() for pair in zip(*weights[2:], strict=True)]
    return torch.stack(w13), torch.stack(w2)


def layered_fp8_call(tokens: int, top_k: int, experts: int, hidden: int, inter: int) -> Callable:
    size = fused_experts_fp8_workspace_bytes(tokens, top_k, experts, hidden, inter)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    out = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="cuda")

    def call(x: torch.Tensor, weights: Fp8Weights, routing: tuple) -> torch.Tensor:
        torch.ops.layered_sglang.fused_experts_fp8_out(x, *weights, *routing, out, workspace)
        return out

    return call


def triton_fp8_call(fused_moe: types.ModuleType) -> Callable:
    """SGLang's Triton runner as Fp8MoEMethod calls it, from its module of the fused MoE."""

    def call(x: torch.Tensor, weights: Fp8Weights, routing: tuple) -> torch.Tensor:
        return fused_moe.fused_experts_impl(
            *(x, weights.w13, weights.w2, *routing),
            use_fp8_w8a8=True,
            w1_scale=weights.w13_scale_inv,
            w2_scale=weights.w2_scale_inv,
            block_shape=[BLOCK, BLOCK],
            filter_expert=False,
        )

    return call


def _quantise(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.empty(weights.shape, dtype=torch.float8_e4m3fn, device=weights.device)
    experts, rows, columns = weights.shape
    scales = torch.empty(experts, rows // BLOCK, columns // BLOCK, device=weights.device)
    for expert, expert_weights in enumerate(weights):
        values[expert], scales[expert] = quantise_blocks(expert_weights)
    return values, scales
