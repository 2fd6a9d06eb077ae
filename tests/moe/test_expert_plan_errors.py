"""Every refused argument is named, with what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch
from layered_sglang.moe import expert_plan
from layered_sglang.moe.reference import expert_plan_reference
from plan_cases import uniform

BAD_INPUTS = [
    (
        (torch.zeros(4, 8, dtype=torch.int64), 8, 1),
        "topk_ids: expected contiguous int32 [tokens, top_k], got int64 [4, 8] on cpu",
    ),
    (
        (torch.zeros(4, dtype=torch.int32), 8, 1),
        "topk_ids: expected contiguous int32 [tokens, top_k], got int32 [4] on cpu",
    ),
    (
        (uniform(4, 2, 8).t(), 8, 1),
        "topk_ids: expected contiguous int32 [tokens, top_k], "
        "got non-contiguous int32 [2, 4] on cpu",
    ),
    ((uniform(4, 2, 8), 0, 1), "num_experts: expected 1 ... 512, got 0"),
    ((uniform(4, 2, 8), 513, 1), "num_experts: expected 1 ... 512, got 513"),
    ((uniform(4, 2, 8), 8, 0), "row_alignment: expected 1 ... 256, got 0"),
    ((uniform(4, 2, 8), 8, 257), "row_alignment: expected 1 ... 256, got 257"),
]


@pytest.mark.parametrize(("args", "message"), BAD_INPUTS)
def test_operator_and_reference_refuse_alike(native: None, args: tuple, message: str) -> None:
    for plan in (torch.ops.layered_sglang.expert_plan, expert_plan_reference):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            plan(*args)
    with pytest.raises(ValueError, match=re.escape(message)):
        expert_plan(args[0], args[1], row_alignment=args[2])


@pytest.mark.parametrize(
    ("index", "buffer", "message"),
    [
        (
            0,
            torch.empty(8, dtype=torch.int32),
            "expert_offsets: expected contiguous int32 [9] on cpu, got int32 [8] on cpu",
        ),
        (
            1,
            torch.empty(8, dtype=torch.float32),
            "expert_counts: expected contiguous int32 [8] on cpu, got float32 [8] on cpu",
        ),
        (
            2,
            torch.empty(256, dtype=torch.int32)[::2],
            "sorted_rows: expected contiguous int32 [128] on cpu, "
            "got non-contiguous int32 [128] on cpu",
        ),
        (
            3,
            torch.empty(8, dtype=torch.int32),
            "inverse_rows: expected contiguous int32 [4, 2] on cpu, got int32 [8] on cpu",
        ),
    ],
)
def test_out_variant_refuses_wrong_buffers(
    native: None, index: int, buffer: torch.Tensor, message: str
) -> None:
    topk_ids = uniform(4, 2, 8)
    buffers = [torch.empty_like(field) for field in expert_plan_reference(topk_ids, 8, 16)]
    buffers[index] = buffer
    workspace = torch.empty(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.ops.layered_sglang.expert_plan_out(topk_ids, 8, 16, *buffers, workspace)
