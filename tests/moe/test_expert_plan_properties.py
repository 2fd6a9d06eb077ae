"""The expert plan's definition on generated routings."""

from __future__ import annotations

import pytest
import torch
from layered_sglang.moe import ExpertPlan, native_status, padded_row_capacity
from layered_sglang.moe.reference import expert_plan_reference
from plan_cases import assert_is_plan, assert_same_plan

hypothesis = pytest.importorskip("hypothesis")
strategies = hypothesis.strategies


@strategies.composite
def routings(draw):
    """(topk_ids, num_experts, row_alignment), ids beyond both ends of the experts included."""
    num_experts = draw(strategies.integers(1, 40))
    tokens = draw(strategies.integers(0, 12))
    top_k = draw(strategies.integers(1, 6))
    expert_ids = strategies.integers(-2, num_experts + 1)
    flat = draw(strategies.lists(expert_ids, min_size=tokens * top_k, max_size=tokens * top_k))
    topk_ids = torch.tensor(flat, dtype=torch.int32).view(tokens, top_k)
    return topk_ids, num_experts, draw(strategies.integers(1, 20))


@hypothesis.settings(max_examples=200)
@hypothesis.given(routings())
def test_reference_is_a_plan(case) -> None:
    assert_is_plan(expert_plan_reference(*case), *case)


@pytest.mark.skipif(not native_status().available, reason=native_status().reason)
@hypothesis.settings(max_examples=400)
@hypothesis.given(routings())
def test_operator_is_a_plan(case) -> None:
    plan = ExpertPlan(*torch.ops.layered_sglang.expert_plan(*case))
    assert_is_plan(plan, *case)
    assert_same_plan(plan, expert_plan_reference(*case))


@hypothesis.given(
    strategies.lists(strategies.integers(0, 50), min_size=1, max_size=40),
    strategies.integers(1, 32),
)
def test_capacity_holds_any_routing_and_is_reached(counts: list[int], row_alignment: int) -> None:
    capacity = padded_row_capacity(sum(counts), len(counts), row_alignment)
    assert sum(-(-count // row_alignment) * row_alignment for count in counts) <= capacity

    # The worst routing with the same sizes: one pair to each expert, the rest on the first.
    pairs, used = sum(counts), min(sum(counts), len(counts))
    worst = [pairs - used + 1] + [1] * (used - 1) if used else []
    padded = sum(-(-count // row_alignment) * row_alignment for count in worst)
    assert capacity - padded < row_alignment * 2
