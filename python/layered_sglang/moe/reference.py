"""Readable PyTorch references of the expert operators, for tests, benchmarks and fallback."""

from __future__ import annotations

import torch

from .fp8 import dequantise_blocks, dequantise_groups, quantise_groups
from .plan_layout import ExpertPlan, check_plan_input, padded_row_capacity


def expert_plan_reference(
    topk_ids: torch.Tensor, num_experts: int, row_alignment: int = 1
) -> ExpertPlan:
    """What `layered_sglang.moe.expert_plan` computes, in PyTorch.

    Same arguments, result and errors, on any device. Nothing here waits for the device, so it can
    be captured into a CUDA graph, but it is about twenty launches.
    """
    check_plan_input(topk_ids, num_experts, row_alignment)
    flat_ids = topk_ids.flatten().long()
    num_pairs = flat_ids.numel()
    has_row = (flat_ids >= 0) & (flat_ids < num_experts)
    # Pairs without a row go to a bucket of their own behind the experts.
    bucket = torch.where(has_row, flat_ids, num_experts)

    bucket_counts = torch.zeros(num_experts + 1, dtype=torch.long, device=topk_ids.device)
    bucket_counts.scatter_add_(0, bucket, torch.ones_like(bucket))
    counts = bucket_counts[:num_experts]
    padded_counts = (counts + row_alignment - 1) // row_alignment * row_alignment
    offsets = exclusive_sum(padded_counts)

    # A pair's rank within its expert is its place in the stable order minus the expert's first.
    order = torch.argsort(bucket, stable=True)
    sorted_bucket = bucket[order]
    rank = torch.arange(num_pairs, device=topk_ids.device)
    rank = rank - exclusive_sum(counts)[sorted_bucket]
    row = offsets[sorted_bucket] + rank

    capacity = padded_row_capacity(num_pairs, num_experts, row_alignment)
    sorted_has_row = sorted_bucket < num_experts
    # One more row takes the writes of the pairs without a row, and is cut off.
    sorted_rows = torch.full((capacity + 1,), -1, dtype=torch.long, device=topk_ids.device)
    sorted_rows[torch.where(sorted_has_row, row, capacity)] = order
    inverse_rows = torch.empty_like(flat_ids)
    inverse_rows[order] = torch.where(sorted_has_row, row, -1)

    return ExpertPlan(
        expert_offsets=offsets.int(),
        expert_counts=counts.int(),
        sorted_rows=sorted_rows[:capacity].int(),
        inverse_rows=inverse_rows.int().view(topk_ids.shape),
    )


def fused_experts_reference(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """What `layered_sglang.moe.fused_experts` computes, in fp32, rounded to x's dtype at the end.

    Same arguments and result, on any device. It reads the routing on the host, so it waits for the
    device and cannot be captured into a CUDA graph.
    """
    y = fused_experts_fp32(x, w13, w2, topk_weights, topk_ids, activation, routed_scaling_factor)
    return y.to(x.dtype)


def fused_experts_fp32(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """The reference's fp32 [tokens, hidden], to measure errors against.

    One expert at a time; only the intermediate is rounded, to x's dtype.
    """
    num_experts, inter = w2.shape[0], w2.shape[2]
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in topk_ids.unique().tolist():
        if not 0 <= expert < num_experts:
            continue
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token].float() @ w13[expert].float().T).split(inter, dim=1)
        gate = gate if activation == "bilinear" else torch.nn.functional.silu(gate)
        neurons = (gate * up).to(x.dtype).float()
        rows = (neurons @ w2[expert].float().T) * topk_weights[token, slot, None]
        y.index_add_(0, token, rows)
    return y * routed_scaling_factor


def fused_experts_fp8_reference(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """What `layered_sglang.moe.fused_experts_fp8` computes, rounded to x's dtype at the end."""
    weights = (w13, w13_scale_inv, w2, w2_scale_inv)
    return fused_experts_fp8_fp32(
        x, *weights, topk_weights, topk_ids, activation, routed_scaling_factor
    ).to(x.dtype)


def fused_experts_fp8_fp32(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    """The fp8 reference's fp32 [tokens, hidden], to measure errors against.

    x and the intermediate are quantised; everything else is fp32, on dequantised values. One
    expert at a time. It reads the routing on the host.
    """
    num_experts, inter = w2.shape[0], w2.shape[2]
    rounded_x = dequantise_groups(*quantise_groups(x))
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in topk_ids.unique().tolist():
        if not 0 <= expert < num_experts:
            continue
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        gate_up = rounded_x[token] @ dequantise_blocks(w13[expert], w13_scale_inv[expert]).T
        gate, up = gate_up.split(inter, dim=1)
        gate = gate if activation == "bilinear" else torch.nn.functional.silu(gate)
        neurons = dequantise_groups(*quantise_groups(gate * up))
        rows = neurons @ dequantise_blocks(w2[expert], w2_scale_inv[expert]).T
        y.index_add_(0, token, rows * topk_weights[token, slot, None])
    return y * routed_scaling_factor


def exclusive_sum(values: torch.Tensor) -> torch.Tensor:
    """[n] -> [n + 1]: the sum of all values before each position, and of all at the end."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))
