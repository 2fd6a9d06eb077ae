"""Limits of the fused experts (src/experts/fused_experts_layout.h) and the check of their input."""

from __future__ import annotations

import torch

from .plan_layout import MAX_EXPERTS, MAX_PAIRS, describe

HIDDEN_MULTIPLE = 8
INTER_MULTIPLE = 8
MAX_TOP_K = 32
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
    for name, tensor, dtype, dims in (
        ("x", x, torch.bfloat16, "[tokens, hidden]"),
        ("w2", w2, torch.bfloat16, "[experts, hidden, inter]"),
        ("topk_ids", topk_ids, torch.int32, "[tokens, top_k]"),
    ):
        if (
            tensor.dtype != dtype
            or tensor.dim() != dims.count(",") + 1
            or not tensor.is_contiguous()
        ):
            dtype_name = str(dtype).removeprefix("torch.")
            raise ValueError(f"{name}: expected contiguous {dtype_name} {dims}, got "
                             f"{describe(tensor)}")  # fmt: skip
    (tokens, hidden), (experts, _, inter), top_k = x.shape, w2.shape, topk_ids.shape[1]
    for name, tensor, dtype, shape in (
        ("w2", w2, torch.bfloat16, (experts, hidden, inter)),
        ("w13", w13, torch.bfloat16, (experts, 2 * inter, hidden)),
        ("topk_ids", topk_ids, torch.int32, (tokens, top_k)),
        ("topk_weights", topk_weights, torch.float32, (tokens, top_k)),
    ):
        matches = tensor.dtype == dtype and tensor.shape == shape and tensor.device == x.device
        if not matches or not tensor.is_contiguous():
            dtype_name = str(dtype).removeprefix("torch.")
            raise ValueError(f"{name}: expected contiguous {dtype_name} {list(shape)} on "
                             f"{x.device}, got {describe(tensor)}")  # fmt: skip
    if hidden == 0 or hidden % HIDDEN_MULTIPLE:
        raise ValueError(f"x: expected a hidden size that is a multiple of {HIDDEN_MULTIPLE}, "
                         f"got {hidden}")  # fmt: skip
    if inter == 0 or inter % INTER_MULTIPLE:
        raise ValueError(f"w2: expected an intermediate size that is a multiple of "
                         f"{INTER_MULTIPLE}, got {inter}")  # fmt: skip
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
    if path not in PATHS:
        raise ValueError(f"path: expected auto, gemv, gemm or gemm_pairs, got {path}")
