"""Inputs for the fp8 fused experts' tests, and how results are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fused_experts_cases import Shape, integer_layer, random_layer, relative_error
from layered_sglang.moe.fp8 import BLOCK, quantise_blocks
from layered_sglang.moe.reference import fused_experts_fp8_fp32

MAX_RELATIVE_ERROR = 0.005
# Hopper's tensor cores add 128 products with some 14 bits, so about one in a hundred neurons is
# rounded to the e4m3 value beside the reference's, up to 1 / 16 away. In a token that one neuron
# dominates, that is the error; over many tokens it vanishes.
MAX_RELATIVE_ERROR_ON_GPU = 0.008
MANY_TOKENS = 256
MAX_RELATIVE_ERROR_OF_A_TOKEN = 1 / 16


class Fp8Layer(NamedTuple):
    """One call's tensors."""

    x: torch.Tensor
    w13: torch.Tensor
    w13_scale_inv: torch.Tensor
    w2: torch.Tensor
    w2_scale_inv: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor


def random_fp8_layer(shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0) -> Fp8Layer:
    """Normal inputs, scaled so that the outputs are of order one.

    Blocks and rows differ in size by up to 16, so a wrong scale shows.
    """
    layer = random_layer(shape, topk_ids, device, seed)
    generator = torch.Generator(device=device).manual_seed(seed + 1)

    def uneven(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scales = quantise_blocks(weights)
        factors = 4.0 ** (2 * torch.rand(scales.shape, generator=generator, device=device) - 1)
        return values, scales * factors

    sizes = 4.0 ** (2 * torch.rand(len(layer.x), 1, generator=generator, device=device) - 1)
    x = (layer.x * sizes).bfloat16()
    return Fp8Layer(x, *uneven(layer.w13), *uneven(layer.w2), layer.topk_weights, layer.topk_ids)


def integer_fp8_layer(shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0) -> Fp8Layer:
    """Integers with which, and with the bilinear activation, every step is exact.

    x and w13 hold -1, 0, 1 and each group has a 448 that meets only zeros, so x's scales are 1.
    Each neuron block has a neuron of 28 * 16 = 448 made from the last column, so that the
    intermediate's scales are 1, too, and the other neurons are within 11 * 11, which is rounded
    to e4m3 as the reference rounds.
    """
    base = integer_layer(shape, topk_ids, device, seed)
    x, w13, w2 = base.x.clone(), base.w13.clone(), base.w2.clone()
    x[:, BLOCK - 1 :: BLOCK] = 448  # each group's largest
    w13[:, :, BLOCK - 1 :: BLOCK] = 0
    x[:, 0] = 1
    first = torch.arange(0, shape.inter, BLOCK, device=device)
    w13[:, first] = 0
    w13[:, shape.inter + first] = 0
    w13[:, first, 0] = 28
    w13[:, shape.inter + first, 0] = 16
    generator = torch.Generator().manual_seed(seed + 1)
    # Those of w13 stay 1, so that the intermediate's do.
    w13_scales = torch.ones(len(w13), w13.shape[1] // BLOCK, w13.shape[2] // BLOCK)
    w2_exponents = torch.randint(
        -1, 2, (len(w2), w2.shape[1] // BLOCK, w2.shape[2] // BLOCK), generator=generator
    )
    to_fp8 = torch.float8_e4m3fn
    w13_parts = (w13.to(to_fp8), w13_scales.to(device))
    w2_parts = (w2.to(to_fp8), (2.0**w2_exponents).to(device))
    return Fp8Layer(x, *w13_parts, *w2_parts, base.topk_weights, base.topk_ids)


def assert_fp8_close(result: torch.Tensor, layer: Fp8Layer, activation: str = "silu") -> None:
    expected = fused_experts_fp8_fp32(*layer, activation)
    error = relative_error(result, expected)
    limit = MAX_RELATIVE_ERROR
    if result.is_cuda:
        many = len(result) >= MANY_TOKENS
        limit = MAX_RELATIVE_ERROR_ON_GPU if many else MAX_RELATIVE_ERROR_OF_A_TOKEN / 2
    assert error <= limit, f"relative error {error}"
    # An error confined to a few tokens would vanish in the norm of all of them.
    norms = expected.norm(dim=1)
    scale = norms.clamp(min=1e-6 + 0.05 * norms.mean()) if len(norms) else norms
    worst = ((result.float() - expected).norm(dim=1) / scale).max().item() if len(scale) else 0.0
    assert worst <= MAX_RELATIVE_ERROR_OF_A_TOKEN, f"relative error of a token {worst}"
