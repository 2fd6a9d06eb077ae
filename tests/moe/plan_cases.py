"""Routings for the expert plan's tests, and what every plan must satisfy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from layered_sglang.moe import ExpertPlan, padded_row_capacity


class Routing(NamedTuple):
    name: str
    topk_ids: torch.Tensor  # int32 [tokens, top_k], on the CPU
    num_experts: int

    def __str__(self) -> str:
        return self.name


def ids(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def uniform(tokens: int, top_k: int, num_experts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_experts, (tokens, top_k), dtype=torch.int32, generator=generator)


def with_counts(counts: list[int], seed: int = 0) -> torch.Tensor:
    """[sum(counts), 1]: expert e exactly counts[e] times, in random order."""
    flat = [expert for expert, count in enumerate(counts) for _ in range(count)]
    random.Random(seed).shuffle(flat)
    return ids([[expert] for expert in flat])


def skewed(tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    fraction = torch.rand(tokens, top_k, generator=generator) ** 4
    return (fraction * num_experts).int().clamp(max=num_experts - 1)


def with_invalid(topk_ids: torch.Tensor, invalid: list[int], every: int = 3) -> torch.Tensor:
    """Replaces one id in `every`, cycling through the invalid ones."""
    out = topk_ids.clone()
    flat = out.view(-1)
    for i, position in enumerate(range(0, flat.numel(), every)):
        flat[position] = invalid[i % len(invalid)]
    return out


INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1


def small_routings() -> Iterator[Routing]:
    yield Routing("no tokens", torch.empty(0, 8, dtype=torch.int32), 128)
    yield Routing("one token", ids([[5, 0, 127, 64]]), 128)
    yield Routing("one pair, one expert", ids([[0]]), 1)
    yield Routing("experts with none", ids([[1, 3], [3, 1], [1, 6]]), 8)
    yield Routing("all on one expert", torch.full((65, 4), 7, dtype=torch.int32), 32)
    yield Routing("duplicates in a token", ids([[2, 2, 2], [0, 2, 0], [2, 0, 2]]), 4)
    yield Routing("half of the ids -1", with_invalid(uniform(40, 8, 32), [-1], 2), 32)
    yield Routing("all ids -1", torch.full((33, 8), -1, dtype=torch.int32), 16)
    yield Routing(
        "ids out of range", with_invalid(uniform(64, 8, 60), [60, -2, 61, INT_MAX, INT_MIN]), 60
    )
    yield Routing("counts at a tile of 16 +- 1", with_counts([15, 16, 17, 0, 1, 31, 32, 33]), 8)
    yield Routing("counts at a warp's and a block's edge", with_counts([1023, 1, 1024, 0, 1025]), 5)
    yield Routing("skewed", skewed(200, 8, 128), 128)
    yield Routing("33 experts", uniform(50, 3, 33), 33)
    yield Routing("512 experts", uniform(100, 16, 512), 512)
    yield Routing("only the last of 512", torch.full((10, 2), 511, dtype=torch.int32), 512)
    for pairs in (31, 32, 33, 1023, 1024, 1025):
        yield Routing(f"{pairs} pairs", uniform(pairs, 1, 16), 16)


def large_routings() -> Iterator[Routing]:
    """From where one block does not do any more to several tiles in every block."""
    for pairs in (4095, 4096, 4097, 5120, 5121):
        yield Routing(f"{pairs} pairs", uniform(pairs, 1, 128), 128)
    yield Routing("4096 tokens", uniform(4096, 8, 128), 128)
    yield Routing("16384 tokens", uniform(16384, 8, 128), 128)
    yield Routing("16384 tokens, 512 experts", uniform(16384, 8, 512), 512)
    yield Routing("16385 tokens, 500 experts", uniform(16385, 8, 500), 500)
    yield Routing("16384 tokens, skewed", skewed(16384, 8, 128), 128)
    yield Routing("16384 tokens, one expert", torch.zeros(16384, 8, dtype=torch.int32), 128)
    yield Routing("16384 tokens, one of 1", torch.zeros(16384, 1, dtype=torch.int32), 1)
    yield Routing("20000 tokens, all ids -1", torch.full((20000, 8), -1, dtype=torch.int32), 64)
    yield Routing("40000 tokens, half -1", with_invalid(uniform(40000, 8, 60), [-1, 60], 2), 60)


def assert_is_plan(
    plan: ExpertPlan, topk_ids: torch.Tensor, num_experts: int, row_alignment: int
) -> None:
    """Checks a plan against its definition, pair by pair, without the reference."""
    for field in plan:
        assert field.dtype == torch.int32
        assert field.is_contiguous()
        assert field.device == topk_ids.device
    flat = topk_ids.flatten().tolist()
    offsets, counts, rows = (field.tolist() for field in plan[:3])
    inverse = plan.inverse_rows.flatten().tolist()
    assert plan.inverse_rows.shape == topk_ids.shape
    assert len(offsets) == num_experts + 1
    assert len(rows) == padded_row_capacity(len(flat), num_experts, row_alignment)

    # Offsets: each expert's rows, padded, and nothing between them.
    assert counts == [flat.count(expert) for expert in range(num_experts)]
    assert offsets[0] == 0
    for expert, count in enumerate(counts):
        padded = -(-count // row_alignment) * row_alignment
        assert offsets[expert + 1] - offsets[expert] == padded
    assert offsets[-1] <= len(rows)

    # Rows: each expert's pairs in ascending flat index (stable), then padding.
    expected_rows = [-1] * len(rows)
    for expert in range(num_experts):
        pairs = [pair for pair, value in enumerate(flat) if value == expert]
        expected_rows[offsets[expert] : offsets[expert] + len(pairs)] = pairs
    assert rows == expected_rows

    # The inverse is the inverse; a pair without an expert has no row.
    for pair, row in enumerate(inverse):
        if 0 <= flat[pair] < num_experts:
            assert rows[row] == pair
        else:
            assert row == -1


def assert_same_plan(plan: ExpertPlan, expected: ExpertPlan) -> None:
    for name in ExpertPlan._fields:
        torch.testing.assert_close(
            getattr(plan, name).cpu(), getattr(expected, name).cpu(), rtol=0, atol=0, msg=name
        )
