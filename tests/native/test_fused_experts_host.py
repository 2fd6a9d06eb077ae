"""The host side of the fused experts' kernels: limits, tiles and the choice of a path."""

from __future__ import annotations

import pytest
from layered_sglang.moe import fused_experts_layout, layer_checks

_host = pytest.importorskip("layered_sglang._host", reason="built without the host module")

QWEN = {"top_k": 8, "num_experts": 128, "hidden": 2048, "inter": 768}
WIDTHS = {16, 32, 48, 64, *range(72, 193, 8)}  # those that the kernels have code for


def test_limits_are_the_same() -> None:
    assert _host.EXPERT_HIDDEN_MULTIPLE == fused_experts_layout.HIDDEN_MULTIPLE
    assert _host.EXPERT_INTER_MULTIPLE == fused_experts_layout.INTER_MULTIPLE
    assert _host.MAX_EXPERT_TOP_K == layer_checks.MAX_TOP_K


@pytest.mark.parametrize("multiple", [1, 2])
def test_tiles_cover_the_rows(multiple: int) -> None:
    for rows in range(1, 2000):
        tiles, width = _host.token_tiles(rows, multiple)
        assert width in WIDTHS
        assert tiles % multiple == 0
        # All rows, and no more tiles than the widest would need.
        assert rows <= tiles * width
        assert tiles == multiple * -(-rows // (multiple * _host.MAX_TILE_TOKENS))


def test_padding_is_small_where_it_costs() -> None:
    for rows in range(65, 2000):
        tiles, width = _host.token_tiles(rows)
        assert tiles * width - rows < 8 * tiles


def test_tiles_refuse_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"token_tiles: expected .*, got 0 and 1"):
        _host.token_tiles(0)


@pytest.mark.parametrize(
    ("num_tokens", "path"),
    [
        *((tokens, "gemv") for tokens in (1, 4)),
        *((tokens, "gemm") for tokens in (5, 2048, 8192)),
        *((tokens, "gemm_pairs") for tokens in (4096, 16384)),
    ],
)
def test_path(num_tokens: int, path: str) -> None:
    """Blocks work in pairs where an average expert needs no more token tiles for it."""
    assert _host.fused_experts_path(num_tokens=num_tokens, **QWEN) == path


def test_one_token_never_repeats_an_expert() -> None:
    sizes = {**QWEN, "num_experts": 8, "top_k": 8}
    assert _host.fused_experts_path(num_tokens=1, **sizes) == "gemv"
    assert _host.fused_experts_path(num_tokens=2, **sizes) == "gemm"
