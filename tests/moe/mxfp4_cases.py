"""Inputs for the MXFP4 fused experts' tests, and how results are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fused_experts_cases import (
    MAX_RELATIVE_ERROR,
    Shape,
    integer_layer,
    random_layer,
    relative_error,
)
from layered_sglang.moe.mxfp4 import LARGEST_SCALE, pack, quantise
from layered_sglang.moe.reference_mxfp4 import fused_experts_mxfp4_fp32


class Mxfp4Layer(NamedTuple):
    """One call's tensors."""

    x: torch.Tensor
    w13: torch.Tensor
    w13_bias: torch.Tensor
    w2: torch.Tensor
    w2_bias: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor


def random_mxfp4_layer(
    shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0
) -> Mxfp4Layer:
    """Normal inputs, scaled so that the outputs are of order one and some neurons are limited.

    Groups of 32 of a row differ in size by up to 16, so a wrong scale shows.
    """
    layer = random_layer(shape, topk_ids, device, seed)
    generator = torch.Generator(device=device).manual_seed(seed + 1)

    def uneven(weights: torch.Tensor, *, gate_up: bool) -> torch.Tensor:
        values, scales = quantise(weights)
        shifts = torch.randint(-2, 3, scales.shape, generator=generator, device=device)
        scales = (scales.int() + shifts).clamp(0, LARGEST_SCALE).to(torch.uint8)
        return pack(values, scales, gate_up=gate_up)

    def bias(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    experts, _, hidden, inter = shape
    w13 = uneven(layer.w13, gate_up=True), bias(experts, 2 * inter)
    w2 = uneven(layer.w2, gate_up=False), bias(experts, hidden)
    return Mxfp4Layer(layer.x, *w13, *w2, layer.topk_weights, layer.topk_ids)


def integer_mxfp4_layer(
    shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0
) -> Mxfp4Layer:
    """Integers so small that with the bilinear activation every step is exact, biases included.

    Weights are -1, 0 and 1 times a power of two of their own in each group.
    """
    layer = integer_layer(shape, topk_ids, device, seed)
    generator = torch.Generator(device=device).manual_seed(seed + 1)

    def packed(weights: torch.Tensor, *, gate_up: bool) -> torch.Tensor:
        values, scales = quantise(weights)
        shifts = torch.randint(0, 2, scales.shape, generator=generator, device=device)
        scales = (scales.int() - shifts).clamp(min=0).to(torch.uint8)
        return pack(values, scales, gate_up=gate_up)

    def bias(*size: int) -> torch.Tensor:
        return torch.randint(-2, 3, size, generator=generator, device=device).float()

    experts, _, hidden, inter = shape
    w13 = packed(layer.w13, gate_up=True), bias(experts, 2 * inter)
    w2 = packed(layer.w2, gate_up=False), bias(experts, hidden)
    return Mxfp4Layer(layer.x, *w13, *w2, layer.topk_weights, layer.topk_ids)


def assert_mxfp4_close(result: torch.Tensor, layer: Mxfp4Layer) -> None:
    expected = fused_experts_mxfp4_fp32(*layer)
    error = relative_error(result, expected)
    assert error <= MAX_RELATIVE_ERROR, f"relative error {error}"
    # An error confined to a few tokens would vanish in the norm of all of them.
    norms = expected.norm(dim=1)
    scale = norms.clamp(min=1e-6 + 0.05 * norms.mean()) if len(norms) else norms
    worst = ((result.float() - expected).norm(dim=1) / scale).max().item() if len(scale) else 0.0
    assert worst <= 4 * MAX_RELATIVE_ERROR, f"relative error of a token {worst}"
