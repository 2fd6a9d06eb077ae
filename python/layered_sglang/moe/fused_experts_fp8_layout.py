"""The check of the fp8 fused experts' input (limits: src/experts/fused_experts_fp8_layout.h)."""

from __future__ import annotations

import torch

from .fp8 import BLOCK
from .fused_experts_layout import ACTIVATIONS, MAX_TOP_K
from .plan_layout import MAX_EXPERTS, MAX_PAIRS, describe

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
    for name, tensor, dtype, dims in (
        ("x", x, torch.bfloat16, "[tokens, hidden]"),
        ("w2", w2, E4M3, "[experts, hidden, inter]"),
        ("topk_ids", topk_ids, torch.int32, "[tokens, top_k]"),
    ):
        is_of_dims = tensor.dim() == dims.count(",") + 1
        if tensor.dtype != dtype or not is_of_dims or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous {_name(dtype)} {dims}, got "
                             f"{describe(tensor)}")  # fmt: skip
    (tokens, hidden), (experts, _, inter), top_k = x.shape, w2.shape, topk_ids.shape[1]
    if hidden == 0 or hidden % BLOCK:
        raise ValueError(f"x: expected a hidden size that is a multiple of {BLOCK}, got {hidden}")
    if inter == 0 or inter % BLOCK:
        raise ValueError(f"w2: expected an intermediate size that is a multiple of {BLOCK}, "
                         f"got {inter}")  # fmt: skip
    for name, tensor, dtype, shape in (
        ("w2", w2, E4M3, (experts, hidden, inter)),
        ("w13", w13, E4M3, (experts, 2 * inter, hidden)),
        ("w13_scale_inv", w13_scale_inv, torch.float32,
         (experts, 2 * (inter // BLOCK), hidden // BLOCK)),
        ("w2_scale_inv", w2_scale_inv, torch.float32, (experts, hidden // BLOCK, inter // BLOCK)),
        ("topk_ids", topk_ids, torch.int32, (tokens, top_k)),
        ("topk_weights", topk_weights, torch.float32, (tokens, top_k)),
    ):  # fmt: skip
        matches = tensor.dtype == dtype and tensor.shape == shape and tensor.device == x.device
        if not matches or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous {_name(dtype)} {list(shape)} on "
                             f"{x.device}, got {describe(tensor)}")  # fmt: skip
    if not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(f"w2: expected 1 ... {MAX_EXPERTS} experts, got {experts}")
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"topk_ids: expected a top_k of 1 ... {MAX_TOP_K}, got {top_k}")
    if topk_ids.numel() > MAX_PAIRS:
        raise ValueError(
            f"topk_ids: expected at most {MAX_PAIRS} elements, got {describe(topk_ids)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected silu or bilinear, got {activation}")
    if path not in FP8_PATHS:
        raise ValueError(f"path: expected auto, narrow or wide, got {path}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
