"""The check of the MXFP4 fused experts' input (limits: src/experts/fused_experts_mxfp4_layout.h)."""

from __future__ import annotations

import torch

from .fused_experts_layout import MAX_TOP_K
from .mxfp4 import BLOCK, BLOCK_BYTES, GROUP
from .plan_layout import MAX_EXPERTS, MAX_PAIRS, describe

MXFP4_ACTIVATIONS = ("swiglu", "bilinear")
MXFP4_PATHS = ("auto", "gemv", "few", "many")


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
    for name, tensor, dtype, dims in (
        ("x", x, torch.bfloat16, "[tokens, hidden]"),
        ("w13_bias", w13_bias, torch.float32, "[experts, 2 * inter]"),
        ("topk_ids", topk_ids, torch.int32, "[tokens, top_k]"),
    ):
        if tensor.dtype != dtype or tensor.dim() != 2 or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous {_name(dtype)} {dims}, got "
                             f"{describe(tensor)}")  # fmt: skip
    (tokens, hidden), (experts, columns), top_k = x.shape, w13_bias.shape, topk_ids.shape[1]
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
        ("topk_ids", topk_ids, torch.int32, (tokens, top_k)),
        ("topk_weights", topk_weights, torch.float32, (tokens, top_k)),
    ):
        matches = tensor.dtype == dtype and tensor.shape == shape and tensor.device == x.device
        if not matches or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous {_name(dtype)} {list(shape)} on "
                             f"{x.device}, got {describe(tensor)}")  # fmt: skip
    if not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(f"w13_bias: expected 1 ... {MAX_EXPERTS} experts, got {experts}")
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"topk_ids: expected a top_k of 1 ... {MAX_TOP_K}, got {top_k}")
    if topk_ids.numel() > MAX_PAIRS:
        raise ValueError(
            f"topk_ids: expected at most {MAX_PAIRS} elements, got {describe(topk_ids)}"
        )
    if activation not in MXFP4_ACTIVATIONS:
        raise ValueError(f"activation: expected swiglu or bilinear, got {activation}")
    if path not in MXFP4_PATHS:
        raise ValueError(f"path: expected auto, gemv, few or many, got {path}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
