"""A MoE layer's experts with MXFP4 weights, biases and a limited SwiGLU, as gpt-oss has."""

from __future__ import annotations

import torch

from .fused_experts_mxfp4_layout import check_fused_experts_mxfp4_input
from .library import has_kernels_for
from .reference_mxfp4 import fused_experts_mxfp4_reference


def fused_experts_mxfp4(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_bias: torch.Tensor,
    w2: torch.Tensor,
    w2_bias: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    activation: str = "swiglu",
    path: str = "auto",
    alpha: float = 1.702,
    limit: float = 7.0,
    routed_scaling_factor: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum over a token's experts of topk_weight * (w2[e] @ neurons + w2_bias[e]).

    A neuron is gate * sigmoid(alpha * gate) * (up + 1) of gate = min(w13[e, 2 n] @ x + bias, limit)
    and up = w13[e, 2 n + 1] @ x + bias, limited to -limit ... limit.

    Args:
        x: bfloat16 [tokens, hidden]; hidden a multiple of 32.
        w13: uint8, `mxfp4.pack(..., gate_up=True)` of [E, 2 * inter, hidden]; gate and up rows
            alternate. inter (of this rank's shard) is a multiple of 32.
        w13_bias: float32 [E, 2 * inter], in the same order.
        w2: uint8, `mxfp4.pack(..., gate_up=False)` of [E, hidden, inter].
        w2_bias: float32 [E, hidden].
        topk_weights: float32 [tokens, top_k]; top_k at most 32.
        topk_ids: int32 [tokens, top_k]. An id outside [0, E), such as the -1 of expert
            parallelism, contributes nothing. An expert may occur twice in a token's row.
        activation: "swiglu", or "bilinear" (gate * up) for exact tests.
        path: "auto" chooses from the sizes; "gemv", "stream", "few" and "many" are for tests and
            benchmarks (src/experts/fused_experts_mxfp4_layout.h).
        alpha, limit: of the SwiGLU.
        routed_scaling_factor: of the sum, in fp32.
        out: takes the result, bfloat16 [tokens, hidden]; it may be x itself.

    All tensors are contiguous and on one device; on a GPU they start at a multiple of 16 bytes.

    Returns:
        bfloat16 [tokens, hidden]. The intermediate is rounded to bfloat16; sums are fp32. The same
        input gives the same bits. On a GPU nothing waits for the device, and a CUDA graph that
        captured it replays with any routing of the same sizes.

    Raises:
        ValueError: an argument is not as above; the message names it, what was expected and what
            came.

    Without the compiled library, or on a device it has no kernels for (`native_status`), the
    PyTorch reference computes the same.
    """
    weights = (w13, w13_bias, w2, w2_bias)
    if has_kernels_for(x.device):
        out = torch.empty_like(x) if out is None else out
        torch.ops.layered_sglang.fused_experts_mxfp4_out(
            *(x, *weights, topk_weights, topk_ids, out),
            activation=activation,
            path=path,
            alpha=alpha,
            limit=limit,
            routed_scaling_factor=routed_scaling_factor,
        )
        return out
    check_fused_experts_mxfp4_input(x, *weights, topk_weights, topk_ids, activation, path)
    y = fused_experts_mxfp4_reference(
        *(x, *weights, topk_weights, topk_ids, activation, alpha, limit, routed_scaling_factor)
    )
    return y if out is None else out.copy_(y)


def fused_experts_mxfp4_workspace_bytes(
    num_tokens: int, top_k: int, num_experts: int, hidden: int, inter: int
) -> int:
    """Bytes of GPU workspace that `torch.ops.layered_sglang.fused_experts_mxfp4_out` needs.

    It grows with num_tokens. Needs the compiled library with CUDA kernels (`native_status`).
    """
    return torch.ops.layered_sglang.fused_experts_mxfp4_workspace_bytes(
        num_tokens, top_k, num_experts, hidden, inter
    )
