"""A MoE layer's experts: gate/up projection, activation, down projection, weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .fused_experts_layout import check_fused_experts_input
from .library import has_kernels_for, native_status
from .reference import fused_experts_reference


def fused_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    activation: str = "silu",
    path: str = "auto",
    routed_scaling_factor: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum over a token's experts of topk_weight * w2[e] @ (silu(gate) * up).

    Args:
        x: bfloat16 [tokens, hidden]; hidden a multiple of 8.
        w13: bfloat16 [E, 2 * inter, hidden]; of each expert the gate rows, then the up rows.
        w2: bfloat16 [E, hidden, inter]; inter (of this rank's shard) a multiple of 8.
        topk_weights: float32 [tokens, top_k]; top_k at most 32.
        topk_ids: int32 [tokens, top_k]. An id outside [0, E), such as the -1 of expert
            parallelism, contributes nothing. An expert may occur twice in a token's row.
        activation: "silu", or "bilinear" (gate * up) for exact tests.
        path: "auto" chooses from the sizes; "gemv", "gemm" and "gemm_pairs" are for tests and
            benchmarks (src/experts/fused_experts_layout.h).
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
    if has_kernels_for(x.device):
        out = torch.empty_like(x) if out is None else out
        torch.ops.layered_sglang.fused_experts_out(
            *(x, w13, w2, topk_weights, topk_ids, out),
            activation=activation,
            path=path,
            routed_scaling_factor=routed_scaling_factor,
        )
        return out
    check_fused_experts_input(x, w13, w2, topk_weights, topk_ids, activation, path)
    y = fused_experts_reference(
        x, w13, w2, topk_weights, topk_ids, activation, routed_scaling_factor
    )
    return y if out is None else out.copy_(y)


@contextmanager
def filling_multiprocessors(count: int | None) -> Iterator[None]:
    """While this lasts, the persistent grids of `fused_experts` fill ``count`` multiprocessors, for a
    stream that may use no more; ``None``: all of the GPU. For the whole process; results stay the same.
    """
    if count is None or not native_status().cuda:
        yield
        return
    torch.ops.layered_sglang.limit_multiprocessors(count)
    try:
        yield
    finally:
        torch.ops.layered_sglang.limit_multiprocessors(0)


def fused_experts_workspace_bytes(
    num_tokens: int, top_k: int, num_experts: int, hidden: int, inter: int
) -> int:
    """Bytes of GPU workspace that `torch.ops.layered_sglang.fused_experts_out` needs.

    It grows with num_tokens, so a workspace for the largest batch serves every smaller one. Needs
    the compiled library with CUDA kernels (`native_status`).
    """
    return torch.ops.layered_sglang.fused_experts_workspace_bytes(
        num_tokens, top_k, num_experts, hidden, inter
    )
