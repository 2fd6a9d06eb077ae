"""The expert plan: which rows of the expert GEMMs each (token, expert) pair takes."""

from __future__ import annotations

import torch

from .library import has_kernels_for
from .plan_layout import ExpertPlan
from .reference import expert_plan_reference


def expert_plan(topk_ids: torch.Tensor, num_experts: int, *, row_alignment: int = 1) -> ExpertPlan:
    """Sorts a router's choices by expert: a stable counting sort of topk_ids.

    Args:
        topk_ids: int32 [tokens, top_k], contiguous. An id outside [0, num_experts), such as the -1
            of expert parallelism, gets no row. An expert may occur twice in a token's row.
        num_experts: E, 1 ... 512.
        row_alignment: pads each expert's rows to a multiple of it, 1 ... 256.

    Returns:
        An ExpertPlan, on topk_ids' device. The same input gives the same bits. On a GPU nothing
        waits for the device, and a CUDA graph that captured it replays with any routing.

    Raises:
        ValueError: an argument is not as above; the message names it, what was expected and what
            came.

    Without the compiled library, or on a device it has no kernels for (`native_status`), the
    PyTorch reference computes the same.
    """
    if has_kernels_for(topk_ids.device):
        return ExpertPlan(
            *torch.ops.layered_sglang.expert_plan(topk_ids, num_experts, row_alignment)
        )
    return expert_plan_reference(topk_ids, num_experts, row_alignment)
