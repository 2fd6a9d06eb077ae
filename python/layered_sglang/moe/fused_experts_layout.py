"""Layout of the expert weights and limits of the experts (src/experts/fused_experts_layout.h)."""

from __future__ import annotations

import torch

from .plan_layout import MAX_EXPERTS, MAX_PAIRS, describe

HIDDEN_MULTIPLE = 8
INTER_MULTIPLE = 16
MAX_TOP_K = 32
ACTIVATIONS = ("silu", "bilinear")
PATHS = ("auto", "gemv", "gemm", "gemm_pairs")


def interleave_gate_up(w13: torch.Tensor) -> torch.Tensor:
    """[E, 2 * inter, hidden], gate rows then up rows -> 16 gate rows, their 16 up rows, and so on.

    A new tensor of the same shape and dtype; do it once, at load. Raises ValueError unless inter is
    a multiple of 16.
    """
    experts, rows, hidden = _check_w13(w13)
    blocks = w13.view(experts, 2, rows // (2 * INTER_MULTIPLE), INTER_MULTIPLE, hidden)
    return blocks.transpose(1, 2).reshape(experts, rows, hidden).contiguous()


def separate_gate_up(w13: torch.Tensor) -> torch.Tensor:
    """The inverse of interleave_gate_up."""
    experts, rows, hidden = _check_w13(w13)
    blocks = w13.view(experts, rows // (2 * INTER_MULTIPLE), 2, INTER_MULTIPLE, hidden)
    return blocks.transpose(1, 2).reshape(experts, rows, hidden).contiguous()


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


def _check_w13(w13: torch.Tensor) -> tuple[int, int, int]:
    if w13.dim() != 3 or not w13.is_contiguous() or w13.shape[1] % (2 * INTER_MULTIPLE):
        raise ValueError(
            f"w13: expected contiguous [experts, 2 * inter, hidden] with inter a multiple of "
            f"{INTER_MULTIPLE}, got {describe(w13)}"
        )
    experts, rows, hidden = w13.shape
    return experts, rows, hidden
