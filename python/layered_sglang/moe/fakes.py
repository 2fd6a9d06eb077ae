"""Shapes and dtypes of the compiled operators' results, for tracing (fake tensors).

Import it once, after the library is loaded (`library.native_status` does).
"""

from __future__ import annotations

import torch

from .fused_experts_fp8_layout import check_fused_experts_fp8_input
from .fused_experts_layout import check_fused_experts_input
from .fused_experts_mxfp4_layout import check_fused_experts_mxfp4_input
from .plan_layout import check_plan_input, padded_row_capacity


@torch.library.register_fake("layered_sglang::expert_plan")
def _expert_plan(
    topk_ids: torch.Tensor, num_experts: int, row_alignment: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    check_plan_input(topk_ids, num_experts, row_alignment)
    capacity = padded_row_capacity(topk_ids.numel(), num_experts, row_alignment)
    return (
        topk_ids.new_empty(num_experts + 1),
        topk_ids.new_empty(num_experts),
        topk_ids.new_empty(capacity),
        torch.empty_like(topk_ids),
    )


@torch.library.register_fake("layered_sglang::expert_plan_out")
def _expert_plan_out(
    topk_ids: torch.Tensor,
    num_experts: int,
    row_alignment: int,
    expert_offsets: torch.Tensor,
    expert_counts: torch.Tensor,
    sorted_rows: torch.Tensor,
    inverse_rows: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    check_plan_input(topk_ids, num_experts, row_alignment)


@torch.library.register_fake("layered_sglang::fused_experts")
def _fused_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    check_fused_experts_input(x, w13, w2, topk_weights, topk_ids, activation, path)
    return torch.empty_like(x)


@torch.library.register_fake("layered_sglang::fused_experts_out")
def _fused_experts_out(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    y: torch.Tensor,
    workspace: torch.Tensor | None = None,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
) -> None:
    check_fused_experts_input(x, w13, w2, topk_weights, topk_ids, activation, path)


@torch.library.register_fake("layered_sglang::fused_experts_fp8")
def _fused_experts_fp8(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    weights = (w13, w13_scale_inv, w2, w2_scale_inv)
    check_fused_experts_fp8_input(x, *weights, topk_weights, topk_ids, activation, path)
    return torch.empty_like(x)


@torch.library.register_fake("layered_sglang::fused_experts_fp8_out")
def _fused_experts_fp8_out(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    y: torch.Tensor,
    workspace: torch.Tensor | None = None,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
) -> None:
    weights = (w13, w13_scale_inv, w2, w2_scale_inv)
    check_fused_experts_fp8_input(x, *weights, topk_weights, topk_ids, activation, path)


@torch.library.register_fake("layered_sglang::fused_experts_mxfp4")
def _fused_experts_mxfp4(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "swiglu",
    path: str = "auto",
    alpha: float = 1.702,
    limit: float = 7.0,
    routed_scaling_factor: float = 1.0,
) -> torch.Tensor:
    weights = (w13, w13_bias, w2, w2_bias)
    check_fused_experts_mxfp4_input(x, *weights, topk_weights, topk_ids, activation, path)
    return torch.empty_like(x)


@torch.library.register_fake("layered_sglang::fused_experts_mxfp4_out")
def _fused_experts_mxfp4_out(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    y: torch.Tensor,
    workspace: torch.Tensor | None = None,
    activation: str = "swiglu",
    path: str = "auto",
    alpha: float = 1.702,
    limit: float = 7.0,
    routed_scaling_factor: float = 1.0,
) -> None:
    weights = (w13, w13_bias, w2, w2_bias)
    check_fused_experts_mxfp4_input(x, *weights, topk_weights, topk_ids, activation, path)
