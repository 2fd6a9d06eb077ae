"""The grouped GEMMs' tasks: the arithmetic that the kernels run, on the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

_host = pytest.importorskip("layered_sglang._host", reason="built without the host module")

T = _host.MAX_TILE_TOKENS
COUNTS = {
    "no tokens": [0] * 8,
    "one token": [0, 1, 0, 0],
    "an expert without rows": [7, 0, 9],
    "all on one expert": [0, 0, 4096, 0],
    "at a tile": [T - 1, T, T + 1, 2 * T - 1, 2 * T, 2 * T + 1],
    "at the widths' steps": [15, 16, 17, 63, 64, 65, 71, 72, 73],
    "skewed": [3000, 800, 200, 60, 15, 4, 1, 0],
    "one expert": [1000],
}


def counts_of(topk_ids: list[list[int]], num_experts: int) -> list[int]:
    """Rows of each expert in a plan: -1 and other ids that are none get no row."""
    flat = np.array([i for row in topk_ids for i in row if 0 <= i < num_experts], dtype=int)
    return np.bincount(flat, minlength=num_experts).tolist()


Task = tuple[int, int, int, int, int]  # expert, weight tile, first row, rows, width


def assert_covered_once(counts: list[int], num_weight_tiles: int, cluster: int) -> None:
    """Every (row of an expert, weight tile) is computed by one task and stored by no other."""
    tasks = _host.grouped_gemm_tasks(counts, num_weight_tiles, cluster)
    assert_tasks_cover_once(tasks, counts, num_weight_tiles, T)


def assert_tasks_cover_once(
    tasks: list[Task], counts: list[int], num_weight_tiles: int, most: int
) -> None:
    covered = [np.zeros((rows, num_weight_tiles), dtype=int) for rows in counts]
    for expert, weight_tile, first_row, rows, width in tasks:
        assert rows <= width <= most
        if rows > 0:
            assert first_row + rows <= counts[expert], "the next expert's rows are overwritten"
            covered[expert][first_row : first_row + rows, weight_tile] += 1
    assert all((c == 1).all() for c in covered)


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("num_weight_tiles", [1, 6])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_routing_cases(counts: list[int], num_weight_tiles: int, cluster: int) -> None:
    assert_covered_once(counts, num_weight_tiles, cluster)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.integers(1, 9),
    st.sampled_from([1, 2]),
)
def test_any_counts(counts: list[int], num_weight_tiles: int, cluster: int) -> None:
    assert_covered_once(counts, num_weight_tiles, cluster)


@given(
    st.lists(st.lists(st.integers(-1, 7), min_size=3, max_size=3), max_size=400),
    st.sampled_from([1, 2]),
)
def test_any_routing_with_duplicates_and_without_ids(ids: list[list[int]], cluster: int) -> None:
    assert_covered_once(counts_of(ids, 7), 3, cluster)


def test_a_weight_tile_is_read_by_adjacent_tasks() -> None:
    """Else it would have left the L2 before its next reader comes."""
    tasks = _host.grouped_gemm_tasks([500, 700], 6)
    readers = [(expert, weight_tile) for expert, weight_tile, *_ in tasks]
    assert readers == sorted(readers)


def test_empty_tiles_come_only_in_pairs() -> None:
    assert all(rows > 0 for *_, rows, _ in _host.grouped_gemm_tasks([1, T, T + 1, 5], 2))
    empty = [rows for *_, rows, _ in _host.grouped_gemm_tasks([1, T, T + 1, 5], 2, 2) if rows <= 0]
    assert 0 < len(empty) <= 3 * 2


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"grouped_gemm_tasks: expected .*, got 0 and 1"):
        _host.grouped_gemm_tasks([1], 0)
    with pytest.raises(ValueError, match=r"a cluster of 1 or 2, got 1 and 3"):
        _host.grouped_gemm_tasks([1], 1, 3)


FP8_WIDTHS = {16, 32, 48, 64, *range(72, 121, 8)}  # those that the fp8 kernels have code for


def assert_fp8_covered_once(counts: list[int], num_weight_tiles: int, wide: bool) -> None:
    tasks = _host.fp8_grouped_gemm_tasks(counts, num_weight_tiles, wide)
    most = _host.FP8_WIDE_TILE_TOKENS if wide else _host.MAX_FP8_TILE_TOKENS
    assert_tasks_cover_once(tasks, counts, num_weight_tiles, most)
    for *_, rows, width in tasks:
        assert rows > 0 and (width == most if wide else width in FP8_WIDTHS)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_fp8_routing_cases(counts: list[int], wide: bool) -> None:
    assert_fp8_covered_once(counts, 3, wide)


@pytest.mark.parametrize("wide", [False, True])
def test_fp8_counts_at_a_tile(wide: bool) -> None:
    assert_fp8_covered_once([*range(1, 3 * _host.FP8_WIDE_TILE_TOKENS + 2)], 1, wide)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(1, 9), st.booleans())
def test_fp8_any_counts(counts: list[int], num_weight_tiles: int, wide: bool) -> None:
    assert_fp8_covered_once(counts, num_weight_tiles, wide)


def test_fp8_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fp8_grouped_gemm_tasks: expected .*, got 0"):
        _host.fp8_grouped_gemm_tasks([1], 0)


MXFP4_PATHS = ("stream", "few", "many")


def assert_mxfp4_covered_once(
    counts: list[int], num_weight_tiles: int, path: str, chunk: int = 2
) -> None:
    tasks = _host.mxfp4_grouped_gemm_tasks(counts, num_weight_tiles, path, chunk)
    most = getattr(_host, f"MXFP4_{path.upper()}_TILE_TOKENS")
    step = 8 if path == "stream" else 16
    assert_tasks_cover_once(tasks, counts, num_weight_tiles, most)
    for *_, rows, width in tasks:
        assert rows > 0 and width in range(step, most + 1, step)


@pytest.mark.parametrize("path", MXFP4_PATHS)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_mxfp4_routing_cases(counts: list[int], path: str) -> None:
    assert_mxfp4_covered_once(counts, 3, path)


@pytest.mark.parametrize("path", MXFP4_PATHS)
def test_mxfp4_counts_at_a_tile(path: str) -> None:
    assert_mxfp4_covered_once([*range(1, 3 * _host.MXFP4_MANY_TILE_TOKENS + 2)], 1, path)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.integers(1, 9),
    st.sampled_from(MXFP4_PATHS),
    st.integers(1, 12),
)
def test_mxfp4_any_counts(counts: list[int], num_weight_tiles: int, path: str, chunk: int) -> None:
    assert_mxfp4_covered_once(counts, num_weight_tiles, path, chunk)


def test_mxfp4_stream_shares_weights() -> None:
    """Token tiles of one expert take chunks of its weights by turns; a single one takes all."""
    tasks = _host.mxfp4_grouped_gemm_tasks([17, 0, 3], 3, "stream", 2)
    first, second = (0, 16, 16), (16, 1, 8)  # token tiles of 17 rows
    assert tasks == [
        *((0, weights, *first) for weights in (0, 1)),
        *((0, weights, *second) for weights in (0, 1)),
        (0, 2, *first), (0, 2, *second),
        *((2, weights, 0, 3, 8) for weights in (0, 1, 2)),
    ]  # fmt: skip


def test_mxfp4_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mxfp4_grouped_gemm_tasks: expected .*, got 0"):
        _host.mxfp4_grouped_gemm_tasks([1], 0, "few")
    with pytest.raises(ValueError, match=r"expected path stream, few or many, got fast"):
        _host.mxfp4_grouped_gemm_tasks([1], 1, "fast")
