"""What an expert plan consists of, and its sizes and limits (src/plan/expert_plan_layout.h)."""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_EXPERTS = 512
MAX_ROW_ALIGNMENT = 256
MAX_PAIRS = 1 << 28


class ExpertPlan(NamedTuple):
    """Rows of the expert GEMMs, expert after expert. All int32, on the device of topk_ids.

    A row holds one (token, expert) pair, named by its flat index `token * top_k + slot`. Within
    an expert the rows are in ascending flat index (the sort is stable). Every element is defined.
    """

    expert_offsets: torch.Tensor
    """[E + 1]: first row of each expert, a multiple of row_alignment; then the padded row total."""
    expert_counts: torch.Tensor
    """[E]: rows of each expert without padding."""
    sorted_rows: torch.Tensor
    """[padded_row_capacity]: flat index in each row; -1 for padding and behind the last expert."""
    inverse_rows: torch.Tensor
    """[tokens, top_k]: the row of each pair; -1 where its id is not in [0, E)."""


def padded_row_capacity(
    num_pairs: int | torch.SymInt, num_experts: int, row_alignment: int = 1
) -> int | torch.SymInt:
    """The most rows that num_pairs pairs take once every expert's rows are padded.

    Only experts that have rows are padded, so at most min(num_pairs, num_experts) of them add at
    most row_alignment - 1 rows each.
    """
    used_experts = torch.sym_min(num_pairs, num_experts)
    rows = num_pairs + used_experts * (row_alignment - 1)
    return rows // row_alignment * row_alignment


def check_plan_input(topk_ids: torch.Tensor, num_experts: int, row_alignment: int) -> None:
    """Raises ValueError, with the compiled operator's messages, for an input it does not take."""
    if topk_ids.dtype != torch.int32 or topk_ids.dim() != 2 or not topk_ids.is_contiguous():
        raise ValueError(
            f"topk_ids: expected contiguous int32 [tokens, top_k], got {describe(topk_ids)}"
        )
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise ValueError(f"num_experts: expected 1 ... {MAX_EXPERTS}, got {num_experts}")
    if not 1 <= row_alignment <= MAX_ROW_ALIGNMENT:
        raise ValueError(f"row_alignment: expected 1 ... {MAX_ROW_ALIGNMENT}, got {row_alignment}")
    if topk_ids.numel() > MAX_PAIRS:
        raise ValueError(
            f"topk_ids: expected at most {MAX_PAIRS} elements, got {describe(topk_ids)}"
        )


def describe(tensor: torch.Tensor) -> str:
    """A tensor in an error message: "int64 [4, 8] on cuda:0"."""
    prefix = "" if tensor.is_contiguous() else "non-contiguous "
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{prefix}{dtype} {list(tensor.shape)} on {tensor.device}"
