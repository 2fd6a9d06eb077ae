"""A MoE layer with MXFP4 weights for bench_fused_moe_mxfp4.py: weights, our call, SGLang's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from layered_sglang.moe import fused_experts_mxfp4_workspace_bytes
from layered_sglang.moe.mxfp4 import GROUP, pack

ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss's SwiGLU


class Mxfp4Weights(NamedTuple):
    """In the kernels' layout."""

    w13: torch.Tensor
    w13_bias: torch.Tensor
    w2: torch.Tensor
    w2_bias: torch.Tensor


class TritonWeights(NamedTuple):
    """What SGLang's Mxfp4MoEMethod holds for its triton_kernels runner."""

    w1: Any
    w1_pcg: Any
    b1: torch.Tensor
    w2: Any
    w2_pcg: Any
    b2: torch.Tensor


class Routing(NamedTuple):
    logits: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor


def random_checkpoint(experts: int, rows: int, columns: int, seed: int) -> tuple:
    """uint8 values and scales whose values are about normal, of variance 4 / columns."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    shape = (experts, rows, columns // 2)
    values = torch.randint(256, shape, generator=generator, device="cuda").to(torch.uint8)
    # All 16 values alike have a variance of 8.6; scales of 2^-7 ... 2^-5 for 2880 columns.
    middle = 127 + round(torch.tensor((4 / columns / 8.6) ** 0.5).log2().item())
    shape = (experts, rows, columns // GROUP)
    scales = torch.randint(middle - 1, middle + 2, shape, generator=generator, device="cuda")
    return values, scales.to(torch.uint8)


def make_layer(
    experts: int, hidden: int, inter: int, seed: int, *, with_peer: bool
) -> tuple[Mxfp4Weights, TritonWeights | None]:
    w13 = random_checkpoint(experts, 2 * inter, hidden, 2 * seed)
    w2 = random_checkpoint(experts, hidden, inter, 2 * seed + 1)
    b13 = torch.randn(experts, 2 * inter, device="cuda")
    b2 = torch.randn(experts, hidden, device="cuda")
    ours = Mxfp4Weights(pack(*w13, gate_up=True), b13, pack(*w2, gate_up=False), b2)
    return ours, triton_weights(w13, b13, w2, b2) if with_peer else None


def triton_weights(w13: tuple, b13: torch.Tensor, w2: tuple, b2: torch.Tensor) -> TritonWeights:
    """As Mxfp4MoEMethod.process_weights_after_loading makes them."""
    from sglang.srt.layers.quantization.mxfp4 import _swizzle_mxfp4
    from triton_kernels.matmul_ogs import FlexCtx, PrecisionConfig

    parts: list[Any] = []
    for (values, scales), bias in ((w13, b13), (w2, b2)):
        weight, flex, scale = _swizzle_mxfp4(values, scales, 8)
        config = PrecisionConfig(weight_scale=scale, flex_ctx=FlexCtx(rhs_data=flex))
        parts += [weight, config, bias]
    return TritonWeights(*parts)


def make_routing(tokens: int, experts: int, top_k: int, seed: int) -> Routing:
    """Distinct experts for each token, all alike; weights are the softmax of the chosen logits."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator, device="cuda")
    chosen = logits.topk(top_k, dim=1)
    return Routing(logits, chosen.values.softmax(1), chosen.indices.int())


def layered_mxfp4_call(
    tokens: int, top_k: int, experts: int, hidden: int, inter: int, path: str
) -> Callable:
    size = fused_experts_mxfp4_workspace_bytes(tokens, top_k, experts, hidden, inter)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    out = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="cuda")

    def call(x: torch.Tensor, weights: Mxfp4Weights, routing: Routing) -> torch.Tensor:
        torch.ops.layered_sglang.fused_experts_mxfp4_out(
            *(x, *weights, routing.weights, routing.ids, out, workspace, "swiglu", path)
        )
        return out

    return call


def triton_mxfp4_call(top_k: int, *, route: bool) -> Callable:
    """SGLang's triton_kernels runner as Mxfp4MoEMethod calls it.

    Its routing (top-k, softmax and the sort that our plan does) is done once, before the timing, or
    with ``route`` in each call.
    """
    from sglang.srt.layers.moe.fused_moe_triton.triton_kernels_moe import (
        triton_kernel_fused_experts_with_bias,
    )
    from sglang.srt.layers.moe.topk import routing as routing_of

    known: dict[int, tuple] = {}

    def call(x: torch.Tensor, weights: TritonWeights, routing: Routing) -> torch.Tensor:
        if route:
            routed = routing_of(routing.logits, top_k)
        else:
            key = routing.logits.data_ptr()
            routed = known.get(key) or known.setdefault(key, routing_of(routing.logits, top_k))
        return triton_kernel_fused_experts_with_bias(
            x,
            *weights,
            *routed,
            gemm1_alpha=ALPHA,
            gemm1_clamp_limit=LIMIT,
        )

    return call
