"""The check of the MXFP4 fused experts' input (limits: src/experts/fused_experts_mxfp4_layout.h)."""

from __future__ import annotations

import torch

from .layer_checks import (
    check_buffer,
    check_choice,
    check_dimensions,
    check_routing,
    check_tokens,
)
from .mxfp4 import BLOCK, BLOCK_BYTES, GROUP

MXFP4_ACTIVATIONS = ("swiglu", "bilinear")
MXFP4_PATHS = ("auto", "gemv", "stream", "few", "many")


def packed_shape(experts: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Of all experts' matrices [rows, columns] in the kernels' layout."""
    return experts, -(-rows // BLOCK), -(-columns // BLOCK), BLOCK_BYTES


def check_fused_experts_mxfp4_input(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "swiglu",
    path: str = "auto",
) -> None:
    """Raises ValueError, with the compiled operator's messages, for an input it does not take."""
    check_tokens(x, topk_ids)
    check_dimensions("w13_bias", w13_bias, torch.float32, "[experts, 2 * inter]")
    hidden, (experts, columns) = x.shape[1], w13_bias.shape
    if hidden == 0 or hidden % GROUP:
        raise ValueError(f"x: expected a hidden size that is a multiple of {GROUP}, got {hidden}")
    if columns == 0 or columns % (2 * GROUP):
        raise ValueError(f"w13_bias: expected two times a multiple of {GROUP} columns, "
                         f"got {columns}")  # fmt: skip
    for name, tensor, dtype, shape in (
        ("w13_bias", w13_bias, torch.float32, (experts, columns)),
        ("w13", w13, torch.uint8, packed_shape(experts, columns, hidden)),
        ("w2", w2, torch.uint8, packed_shape(experts, hidden, columns // 2)),
        ("w2_bias", w2_bias, torch.float32, (experts, hidden)),
    ):
        check_buffer(name, tensor, dtype, shape, x.device)
    check_routing(x, topk_weights, topk_ids, experts, "w13_bias")
    check_choice("activation", activation, MXFP4_ACTIVATIONS)
    check_choice("path", path, MXFP4_PATHS)
