"""Random traffic against servers of two tensor-parallel ranks."""

from __future__ import annotations

import pytest
from scenarios import CHUNKS, SEED, SMALL_CHUNKS, TIGHT, TINY_POOL, Setup, expect_stock_answers

SETUPS = [
    Setup(True, 2, True, (*TINY_POOL, *SMALL_CHUNKS, *TIGHT)),
    Setup(True, 2, False, ()),
    Setup(False, 2, True, ("--num-layer-groups", "8")),
    Setup(False, 2, False, (*TINY_POOL, *CHUNKS)),
]


@pytest.mark.server
@pytest.mark.parametrize("setup", SETUPS, ids=str)
@pytest.mark.timeout(1500)
def test_answers_are_stock_sglangs(setup, ask_stock, make_model, tmp_path):
    seeds = SEED + 1000 * (4 + SETUPS.index(setup))
    expect_stock_answers(setup, seeds, ask_stock, make_model, tmp_path)
