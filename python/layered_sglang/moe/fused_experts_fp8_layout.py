"""The check of the fp8 fused experts' input (limits: src/experts/fused_experts_fp8_layout.h)."""

from __future__ import annotations

import torch

from .fp8 import BLOCK
from .fused_experts_layout import ACTIVATIONS
from .layer_checks import (
    check_buffer,
    check_choice,
    check_dimensions,
    check_routing,
    check_tokens,
)

E4M3 = torch.float8_e4m3fn
FP8_PATHS = ("auto", "narrow", "wide")


def check_fused_experts_fp8_input(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    path: str = "auto",
) -> None:
    """Raises ValueError, with the compiled operator's messages, for an input it does not take."""
    check_tokens(x, topk_ids)
    check_dimensions("w2", w2, E4M3, "[experts, hidden, inter]")
    hidden, (experts, _, inter) = x.shape[1], w2.shape
    if hidden == 0 or hidden % BLOCK:
        raise ValueError(f"x: expected a hidden size that is a multiple of {BLOCK}, got {hidden}")
    if inter == 0 or inter % BLOCK:
        raise ValueError(f"w2: expected an intermediate size that is a multiple of {BLOCK}, "
                         f"got {inter}")  # fmt: skip
    blocks = (hidden // BLOCK, inter // BLOCK)
    for name, tensor, dtype, shape in (
        ("w2", w2, E4M3, (experts, hidden, inter)),
        ("w13", w13, E4M3, (experts, 2 * inter, hidden)),
        ("w13_scale_inv", w13_scale_inv, torch.float32, (experts, 2 * blocks[1], blocks[0])),
        ("w2_scale_inv", w2_scale_inv, torch.float32, (experts, *blocks)),
    ):
        check_buffer(name, tensor, dtype, shape, x.device)
    check_routing(x, topk_weights, topk_ids, experts, "w2")
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("path", path, FP8_PATHS)
