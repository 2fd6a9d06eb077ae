"""A readable PyTorch reference of the MXFP4 fused experts, for tests, benchmarks and fallback."""

from __future__ import annotations

import torch

from .mxfp4 import dequantise, unpack


def fused_experts_mxfp4_reference(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "swiglu",
    alpha: float = 1.702,
    limit: float = 7.0,
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """What `layered_sglang.moe.fused_experts_mxfp4` computes, rounded to x's dtype at the end."""
    weights = (w13, w13_bias, w2, w2_bias)
    return fused_experts_mxfp4_fp32(
        *(x, *weights, topk_weights, topk_ids, activation, alpha, limit, routed_scaling_factor)
    ).to(x.dtype)


def fused_experts_mxfp4_fp32(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "swiglu",
    alpha: float = 1.702,
    limit: float = 7.0,
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """The reference's fp32 [tokens, hidden], to measure errors against.

    The intermediate is rounded to x's dtype; everything else is fp32, on dequantised weights. One
    expert at a time. It reads the routing on the host.
    """
    num_experts, hidden = w2_bias.shape
    inter = w13_bias.shape[1] // 2
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in topk_ids.unique().tolist():
        if not 0 <= expert < num_experts:
            continue
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        one = slice(expert, expert + 1)
        gate_up = x[token].float() @ _matrix(w13[one], 2 * inter, hidden, gate_up=True).T
        neurons = activate(gate_up + w13_bias[expert], activation, alpha, limit).to(x.dtype)
        rows = neurons.float() @ _matrix(w2[one], hidden, inter, gate_up=False).T + w2_bias[expert]
        y.index_add_(0, token, rows * topk_weights[token, slot, None])
    return y * routed_scaling_factor


def activate(gate_up: torch.Tensor, activation: str, alpha: float, limit: float) -> torch.Tensor:
    """[rows, 2 * inter], alternately gate and up, -> [rows, inter]."""
    gate, up = gate_up[:, ::2], gate_up[:, 1::2]
    if activation == "bilinear":
        return gate * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def _matrix(packed: torch.Tensor, rows: int, columns: int, *, gate_up: bool) -> torch.Tensor:
    return dequantise(*unpack(packed, rows, columns, gate_up=gate_up))[0]
