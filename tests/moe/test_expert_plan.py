"""The expert plan on the CPU: the compiled operator and the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layered_sglang.moe import ExpertPlan, expert_plan, native_status, padded_row_capacity
from layered_sglang.moe.reference import expert_plan_reference
from plan_cases import (
    Routing,
    assert_is_plan,
    assert_same_plan,
    ids,
    large_routings,
    small_routings,
)

Plan = Callable[[torch.Tensor, int, int], ExpertPlan]


@pytest.fixture(params=["operator", "reference"])
def plan(request: pytest.FixtureRequest) -> Plan:
    if request.param == "reference":
        return expert_plan_reference
    request.getfixturevalue("native")
    return lambda *args: ExpertPlan(*torch.ops.layered_sglang.expert_plan(*args))


def test_hand_worked_example(plan: Plan) -> None:
    # Flat pairs: 0:2  1:0 | 2:2  3:-1 | 4:0  5:2
    topk_ids = ids([[2, 0], [2, -1], [0, 2]])
    result = plan(topk_ids, 4, 4)
    assert result.expert_offsets.tolist() == [0, 4, 4, 8, 8]
    assert result.expert_counts.tolist() == [2, 0, 3, 0]
    assert result.sorted_rows.tolist() == [1, 4, -1, -1, 0, 2, 5, -1] + [-1] * 8
    assert result.inverse_rows.tolist() == [[4, 0], [5, -1], [1, 6]]


@pytest.mark.parametrize("row_alignment", [1, 3, 16, 256])
@pytest.mark.parametrize("routing", list(small_routings()), ids=str)
def test_small_routings(plan: Plan, routing: Routing, row_alignment: int) -> None:
    result = plan(routing.topk_ids, routing.num_experts, row_alignment)
    assert_is_plan(result, routing.topk_ids, routing.num_experts, row_alignment)


@pytest.mark.parametrize("routing", list(large_routings()), ids=str)
def test_operator_equals_reference_on_large_routings(native: None, routing: Routing) -> None:
    args = routing.topk_ids, routing.num_experts, 16
    result = ExpertPlan(*torch.ops.layered_sglang.expert_plan(*args))
    assert_same_plan(result, expert_plan_reference(*args))


def test_public_function_takes_alignment_by_keyword() -> None:
    topk_ids = ids([[1, 0]])
    assert expert_plan(topk_ids, 2).expert_offsets.tolist() == [0, 1, 2]
    assert expert_plan(topk_ids, 2, row_alignment=8).expert_offsets.tolist() == [0, 8, 16]


def test_public_function_falls_back_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layered_sglang.moe.plan.has_kernels_for", lambda device: False)
    topk_ids = ids([[1, 0], [1, 1]])
    assert_is_plan(expert_plan(topk_ids, 2, row_alignment=4), topk_ids, 2, 4)


def test_out_variant_overwrites_whatever_was_there(native: None) -> None:
    topk_ids = ids([[2, 0], [2, -1], [0, 2]])
    capacity = padded_row_capacity(6, 4, 4)
    poison = [torch.full(shape, -77, dtype=torch.int32) for shape in ((5,), (4,), (capacity,))]
    buffers = ExpertPlan(*poison, torch.full((3, 2), -77, dtype=torch.int32))
    workspace = torch.empty(0, dtype=torch.uint8)
    torch.ops.layered_sglang.expert_plan_out(topk_ids, 4, 4, *buffers, workspace)
    assert_same_plan(buffers, expert_plan_reference(topk_ids, 4, 4))


@pytest.mark.skipif(not native_status().available, reason=native_status().reason)
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_opcheck(tokens: int) -> None:
    """The schema tells the truth, and fake tensors have the real shapes, also symbolically."""
    topk_ids = torch.randint(-1, 8, (tokens, 2), dtype=torch.int32)
    torch.library.opcheck(torch.ops.layered_sglang.expert_plan.default, (topk_ids, 8, 16))
    out = [torch.empty_like(field) for field in expert_plan_reference(topk_ids, 8, 16)]
    workspace = torch.empty(0, dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.layered_sglang.expert_plan_out.default, (topk_ids, 8, 16, *out, workspace)
    )
