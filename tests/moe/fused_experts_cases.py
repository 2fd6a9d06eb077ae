"""Inputs for the fused experts' tests, and how results are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from layered_sglang.moe.reference import fused_experts_fp32

MAX_RELATIVE_ERROR = 0.005


class Shape(NamedTuple):
    num_experts: int
    top_k: int
    hidden: int
    inter: int

    def __str__(self) -> str:
        return f"E{self.num_experts}k{self.top_k}h{self.hidden}i{self.inter}"


class Layer(NamedTuple):
    """One call's tensors."""

    x: torch.Tensor
    w13: torch.Tensor
    w2: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor


def random_layer(shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0) -> Layer:
    """Normal inputs, scaled so that the outputs are of order one."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*size: int, scale: float) -> torch.Tensor:
        values = torch.randn(*size, generator=generator, device=device)
        return (values * scale).bfloat16()

    experts, _, hidden, inter = shape
    w13 = normal(experts, 2 * inter, hidden, scale=2 * hidden**-0.5)
    w2 = normal(experts, hidden, inter, scale=inter**-0.5)
    x = normal(topk_ids.shape[0], hidden, scale=1.0)
    weights = torch.rand(topk_ids.shape, generator=generator, device=device)
    return Layer(x, w13, w2, weights, topk_ids.to(device))


def integer_layer(shape: Shape, topk_ids: torch.Tensor, device: str, seed: int = 0) -> Layer:
    """Integers so small and sparse that with the bilinear activation every step is exact.

    Gate and up sums stay within 11 and their products below 128; a row of w2 has 16 nonzeros of
    1, so partial sums are integers below 2048 and fp32 holds them. Rows are then rounded to
    bfloat16, so the comparison rounds where the kernels do.
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def sparse(*size: int, nonzeros: int) -> torch.Tensor:
        values = torch.zeros(size, device=device)
        places = torch.randint(size[-1], (*size[:-1], nonzeros), generator=generator, device=device)
        signs = torch.randint(2, places.shape, generator=generator, device=device) * 2.0 - 1.0
        return values.scatter_(-1, places, signs).bfloat16()

    experts, _, hidden, inter = shape
    w13 = sparse(experts, 2 * inter, hidden, nonzeros=min(11, hidden))
    w2 = sparse(experts, hidden, inter, nonzeros=min(2, inter))
    x = sparse(topk_ids.shape[0], hidden, nonzeros=hidden)
    weights = torch.ones(topk_ids.shape, device=device)
    return Layer(x, w13, w2, weights, topk_ids.to(device))


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """||result - expected|| / ||expected||; NaN anywhere gives NaN, which passes no limit."""
    difference = (result.float() - expected).norm()
    norm = expected.norm()
    return (difference / norm if norm > 0 else difference).item()


def assert_close(result: torch.Tensor, layer: Layer, activation: str = "silu") -> None:
    expected = fused_experts_fp32(*layer, activation)
    error = relative_error(result, expected)
    assert error <= MAX_RELATIVE_ERROR, f"relative error {error}"
    # An error confined to a few tokens would vanish in the norm of all of them.
    scale = expected.norm(dim=1).clamp(min=1e-6 + 0.05 * expected.norm(dim=1).mean())
    worst = ((result.float() - expected).norm(dim=1) / scale).max().item() if len(scale) else 0.0
    assert worst <= 4 * MAX_RELATIVE_ERROR, f"relative error of a token {worst}"


def uniform_ids(tokens: int, shape: Shape, seed: int = 0) -> torch.Tensor:
    """int32 [tokens, top_k], distinct experts in a row, as a router chooses them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, shape.num_experts, generator=generator)
    return scores.topk(shape.top_k, dim=1).indices.int()
