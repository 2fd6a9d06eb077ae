"""A MoE layer's experts with block-scaled fp8 weights, as DeepSeek's and Qwen3's FP8 checkpoints."""

from __future__ import annotations

import torch

from .fused_experts_fp8_layout import check_fused_experts_fp8_input
from .library import has_kernels_for
from .reference import fused_experts_fp8_reference


def fused_experts_fp8(
    x: torch.Tensor,
    w13: torch.Tensor,
    w13_scale_inv: torch.Tensor,
    w2: torch.Tensor,
    w2_scale_inv: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum over a token's experts of topk_weight * w2[e] @ (silu(gate) * up), in fp8.

    x and the intermediate are quantised to float8_e4m3fn, each 128 of a row with a scale of its
    own (`fp8.quantise_groups`); products are summed in fp32, 128 of K at a time, then scaled.

    Args:
        x: bfloat16 [tokens, hidden]; hidden a multiple of 128.
        w13: float8_e4m3fn [E, 2 * inter, hidden]; of each expert the gate rows, then the up rows.
        w13_scale_inv: float32 [E, 2 * inter / 128, hidden / 128]; a block of w13 stands for its
            values times its scale.
        w2: float8_e4m3fn [E, hidden, inter]; inter (of this rank's shard) a multiple of 128.
        w2_scale_inv: float32 [E, hidden / 128, inter / 128].
        topk_weights: float32 [tokens, top_k]; top_k at most 32.
        topk_ids: int32 [tokens, top_k]. An id outside [0, E), such as the -1 of expert
            parallelism, contributes nothing. An expert may occur twice in a token's row.
        activation: "silu", or "bilinear" (gate * up) for exact tests.
        path: "auto" chooses from the sizes; "narrow" and "wide" are for tests and benchmarks
            (src/experts/token_tiles_fp8.h).
        routed_scaling_factor: of the sum, in fp32.
        out: takes the result, bfloat16 [tokens, hidden]; it may be x itself.

    All tensors are contiguous and on one device; on a GPU they start at a multiple of 16 bytes.

    Returns:
        bfloat16 [tokens, hidden]. The same input gives the same bits. On a GPU nothing waits for
        the device, and a CUDA graph that captured it replays with any routing of the same sizes.

    Raises:
        ValueError: an argument is not as above; the message names it, what was expected and what
            came.

    Without the compiled library, or on a device it has no kernels for (`native_status`), the
    PyTorch reference computes the same.
    """
    weights = (w13, w13_scale_inv, w2, w2_scale_inv)
    if has_kernels_for(x.device):
        out = torch.empty_like(x) if out is None else out
        torch.ops.layered_sglang.fused_experts_fp8_out(
            *(x, *weights, topk_weights, topk_ids, out),
            activation=activation,
            path=path,
            routed_scaling_factor=routed_scaling_factor,
        )
        return out
    check_fused_experts_fp8_input(x, *weights, topk_weights, topk_ids, activation, path)
    y = fused_experts_fp8_reference(
        x, *weights, topk_weights, topk_ids, activation, routed_scaling_factor
    )
    return y if out is None else out.copy_(y)


def fused_experts_fp8_workspace_bytes(
    num_tokens: int, top_k: int, num_experts: int, hidden: int, inter: int
) -> int:
    """Bytes of GPU workspace that `torch.ops.layered_sglang.fused_experts_fp8_out` needs.

    It grows with num_tokens. Needs the compiled library with CUDA kernels (`native_status`).
    """
    return torch.ops.layered_sglang.fused_experts_fp8_workspace_bytes(
        num_tokens, top_k, num_experts, hidden, inter
    )
