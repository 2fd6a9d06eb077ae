"""Limits of the fused experts (src/experts/fused_experts_layout.h) and the check of their input."""

from __future__ import annotations

import torch

from .layer_checks import (
    check_buffer,
    check_choice,
    check_dimensions,
    check_routing,
    check_tokens,
)

HIDDEN_MULTIPLE = 8
INTER_MULTIPLE = 8
ACTIVATIONS = ("silu", "bilinear")
PATHS = ("auto", "gemv", "gemm", "gemm_pairs")


def check_fused_experts_input(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    path: str = "auto",
) -> None:
    """Raises ValueError, with the compiled operator's messages, for an input it does not take."""
    check_tokens(x, topk_ids)
    check_dimensions("w2", w2, torch.bfloat16, "[experts, hidden, inter]")
    hidden, (experts, _, inter) = x.shape[1], w2.shape
    check_buffer("w2", w2, torch.bfloat16, (experts, hidden, inter), x.device)
    check_buffer("w13", w13, torch.bfloat16, (experts, 2 * inter, hidden), x.device)
    if hidden == 0 or hidden % HIDDEN_MULTIPLE:
        raise ValueError(f"x: expected a hidden size that is a multiple of {HIDDEN_MULTIPLE}, "
                         f"got {hidden}")  # fmt: skip
    if inter == 0 or inter % INTER_MULTIPLE:
        raise ValueError(f"w2: expected an intermediate size that is a multiple of "
                         f"{INTER_MULTIPLE}, got {inter}")  # fmt: skip
    check_routing(x, topk_weights, topk_ids, experts, "w2")
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("path", path, PATHS)
