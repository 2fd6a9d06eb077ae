"""Checks of a MoE layer's tensors that every format shares, with the compiled operator's messages.

The compiled ones are in csrc/layer_check.cpp and csrc/tensor_check.cpp.
"""

from __future__ import annotations

import torch

from .plan_layout import MAX_EXPERTS, MAX_PAIRS, describe

MAX_TOP_K = 32


def check_dimensions(name: str, tensor: torch.Tensor, dtype: torch.dtype, sizes: str) -> None:
    """Raises ValueError unless contiguous, of dtype and with the dimensions ``sizes`` names."""
    has_dimensions = tensor.dim() == sizes.count(",") + 1
    if tensor.dtype != dtype or not has_dimensions or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous {_name(dtype)} {sizes}, got {describe(tensor)}"
        )


def check_tokens(x: torch.Tensor, topk_ids: torch.Tensor) -> None:
    """x bf16 [tokens, hidden] and topk_ids int32 [tokens, top_k], each for itself."""
    check_dimensions("x", x, torch.bfloat16, "[tokens, hidden]")
    check_dimensions("topk_ids", topk_ids, torch.int32, "[tokens, top_k]")


def check_buffer(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Raises ValueError unless contiguous, of dtype and shape on the device."""
    matches = tensor.dtype == dtype and tensor.shape == shape and tensor.device == device
    if not matches or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous {_name(dtype)} {list(shape)} on {device}, got "
            f"{describe(tensor)}"
        )


def check_routing(
    x: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    experts: int,
    experts_of: str,
) -> None:
    """The routing and the plan's limits. experts_of: the tensor that has ``experts`` of them."""
    shape = (x.shape[0], topk_ids.shape[1])
    check_buffer("topk_ids", topk_ids, torch.int32, shape, x.device)
    check_buffer("topk_weights", topk_weights, torch.float32, shape, x.device)
    if not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(f"{experts_of}: expected 1 ... {MAX_EXPERTS} experts, got {experts}")
    if not 1 <= shape[1] <= MAX_TOP_K:
        raise ValueError(f"topk_ids: expected a top_k of 1 ... {MAX_TOP_K}, got {shape[1]}")
    if topk_ids.numel() > MAX_PAIRS:
        raise ValueError(
            f"topk_ids: expected at most {MAX_PAIRS} elements, got {describe(topk_ids)}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
