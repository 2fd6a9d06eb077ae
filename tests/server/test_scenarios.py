"""Random traffic against servers of one rank: with and without overlap, with and without radix cache,
with small KV pools, chunks, layer groups and priorities spread over them."""

from __future__ import annotations

import pytest
from scenarios import SEED, SMALL_CHUNKS, TIGHT, TINY_POOL, Setup, expect_stock_answers

SETUPS = [
    Setup(True, 1, True, ("--layer-group-tokens", "64")),
    Setup(True, 1, False, (*TINY_POOL, *SMALL_CHUNKS, *TIGHT)),
    Setup(False, 1, True, (*TINY_POOL, *SMALL_CHUNKS), priorities=True),
    Setup(False, 1, False, ("--num-layer-groups", "3", "--max-running-requests", "3")),
]


@pytest.mark.server
@pytest.mark.parametrize("setup", SETUPS, ids=str)
@pytest.mark.timeout(1500)
def test_answers_are_stock_sglangs(setup, ask_stock, make_model, tmp_path):
    seeds = SEED + 1000 * SETUPS.index(setup)
    expect_stock_answers(setup, seeds, ask_stock, make_model, tmp_path)
