"""The search for the highest rate, on servers that hold out to a known one."""

from __future__ import annotations

import pytest
from layered_sglang.bench.rate_search import search_rate
from layered_sglang.bench.scenario import Search


def searched(limit: float, steps: int = 6, attainment: float = 0.9):
    tried: list[float] = []

    def attain(rate: float) -> float:
        tried.append(rate)
        return 1.0 if rate <= limit else 0.5

    return search_rate(Search(1.0, 3.0, attainment, steps), attain), tried


@pytest.mark.parametrize("limit", [1.0, 1.3, 2.0, 2.9])
def test_it_comes_near_the_limit_from_below(limit):
    found, tried = searched(limit)
    assert found is not None
    assert limit - 2 / 2**4 <= found <= limit
    assert len(tried) <= 6


def test_a_server_that_keeps_up_with_everything_and_one_that_does_not():
    assert searched(9.0) == (3.0, [1.0, 3.0])
    assert searched(0.5) == (None, [1.0])
    assert searched(0.5, attainment=0.5)[0] == 3.0


def test_one_step_tries_one_rate():
    assert searched(2.0, steps=1) == (1.0, [1.0])
