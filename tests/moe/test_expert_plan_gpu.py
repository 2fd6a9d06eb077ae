"""The expert plan's kernels on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from layered_sglang.moe import ExpertPlan, expert_plan, padded_row_capacity
from layered_sglang.moe.reference import expert_plan_reference
from plan_cases import (
    Routing,
    assert_same_plan,
    large_routings,
    skewed,
    small_routings,
    uniform,
    with_invalid,
)

pytestmark = pytest.mark.gpu

ROUTINGS = [*small_routings(), *large_routings()]
GUARD = 64  # elements on either side of a buffer
POISON = 0x7BADF00D


class Guarded:
    """A poisoned int32 buffer on the GPU between two poisoned guards."""

    def __init__(self, *shape: int) -> None:
        numel = torch.Size(shape).numel()
        self.memory = torch.full((numel + 2 * GUARD,), POISON, dtype=torch.int32, device="cuda")
        self.buffer = self.memory[GUARD : GUARD + numel].view(shape)

    def guards_are_intact(self) -> bool:
        guards = torch.cat([self.memory[:GUARD], self.memory[-GUARD:]])
        return bool((guards == POISON).all())


def guarded_plan(topk_ids: torch.Tensor, num_experts: int, row_alignment: int) -> ExpertPlan:
    """The plan through expert_plan_out, every buffer (the input, too) poisoned and guarded."""
    pairs = topk_ids.numel()
    source = Guarded(*topk_ids.shape)
    source.buffer.copy_(topk_ids)
    outputs = [
        Guarded(num_experts + 1),
        Guarded(num_experts),
        Guarded(padded_row_capacity(pairs, num_experts, row_alignment)),
        Guarded(*topk_ids.shape),
    ]
    workspace_bytes = torch.ops.layered_sglang.expert_plan_workspace_bytes(
        pairs, num_experts, row_alignment
    )
    workspace = Guarded(workspace_bytes // 4)
    torch.ops.layered_sglang.expert_plan_out(
        source.buffer,
        num_experts,
        row_alignment,
        *(output.buffer for output in outputs),
        workspace.buffer.view(torch.uint8),
    )
    assert all(guarded.guards_are_intact() for guarded in (source, *outputs, workspace))
    assert torch.equal(source.buffer.cpu(), topk_ids.cpu())
    return ExpertPlan(*(output.buffer for output in outputs))


@pytest.mark.parametrize("row_alignment", [1, 16, 100])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_equals_reference(routing: Routing, row_alignment: int) -> None:
    args = routing.topk_ids, routing.num_experts, row_alignment
    expected = expert_plan_reference(*args)
    assert_same_plan(guarded_plan(*args), expected)
    plan = expert_plan(routing.topk_ids.cuda(), routing.num_experts, row_alignment=row_alignment)
    assert_same_plan(plan, expected)


def test_reference_is_the_same_on_the_gpu() -> None:
    args = with_invalid(uniform(300, 8, 60), [-1, 60]), 60, 16
    assert_same_plan(expert_plan_reference(args[0].cuda(), *args[1:]), expert_plan_reference(*args))


@pytest.mark.parametrize("tokens", [1, 64, 512, 513, 16384])
def test_repeats_bit_for_bit(tokens: int) -> None:
    topk_ids = skewed(tokens, 8, 128).cuda()
    first = expert_plan(topk_ids, 128, row_alignment=16)
    for _ in range(50):
        plan = expert_plan(topk_ids, 128, row_alignment=16)
        assert all(torch.equal(*fields) for fields in zip(plan, first, strict=True))


@pytest.mark.parametrize("tokens", [1, 64, 512, 513, 16384])
def test_graph_replays_with_another_routing(tokens: int) -> None:
    topk_ids = uniform(tokens, 8, 128).cuda()
    expert_plan(topk_ids, 128, row_alignment=16)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = expert_plan(topk_ids, 128, row_alignment=16)
    others = (
        skewed(tokens, 8, 128),
        torch.zeros(tokens, 8, dtype=torch.int32),
        torch.full((tokens, 8), -1, dtype=torch.int32),
        uniform(tokens, 8, 128, seed=1),
    )
    for other in others:
        topk_ids.copy_(other)
        for field in plan:
            field.fill_(POISON)
        graph.replay()
        assert_same_plan(plan, expert_plan_reference(other, 128, 16))


def test_runs_on_the_current_stream() -> None:
    """Behind a long copy on a side stream it sees that copy's result, not what was before."""
    topk_ids = torch.zeros(16384, 8, dtype=torch.int32, device="cuda")
    new_ids = uniform(16384, 8, 128).cuda()
    big = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(20):
            big.fill_(1)
        topk_ids.copy_(new_ids)
        plan = expert_plan(topk_ids, 128, row_alignment=16)
    torch.cuda.current_stream().wait_stream(side)
    assert_same_plan(plan, expert_plan_reference(new_ids.cpu(), 128, 16))


def test_refuses_a_small_workspace_and_another_device() -> None:
    topk_ids = uniform(16384, 8, 128).cuda()
    buffers = [torch.empty_like(field) for field in expert_plan_reference(topk_ids, 128, 1)]
    needed = torch.ops.layered_sglang.expert_plan_workspace_bytes(topk_ids.numel(), 128, 1)
    assert needed > 0
    too_small = torch.empty(needed - 1, dtype=torch.uint8, device="cuda")
    out = torch.ops.layered_sglang.expert_plan_out
    with pytest.raises(
        ValueError, match=f"workspace: expected contiguous uint8 of at least {needed}"
    ):
        out(topk_ids, 128, 1, *buffers, too_small)
    workspace = torch.empty(needed, dtype=torch.uint8, device="cuda")
    buffers[1] = buffers[1].cpu()
    with pytest.raises(
        ValueError, match=r"expert_counts: expected .* on cuda:0, got int32 \[128\] on cpu"
    ):
        out(topk_ids, 128, 1, *buffers, workspace)
