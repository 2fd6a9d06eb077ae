"""The search for the highest rate, on servers that hold out to a known one."""

from __future__ import annotations

import pytest
from layered_sglang.bench.running.client import Row
from layered_sglang.bench.running.rate_search import Verdict, search_rate
from layered_sglang.bench.spec.search import Search
from layered_sglang.bench.spec.target import Target

TARGET = Target(1.0, 100.0)


def searched(limit: float, steps: int = 9, start: float | None = None):
    tried: list[float] = []

    def keeps(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    starts = {} if start is None else {"a": start}
    search = Search("", ("a",), TARGET, 1.0, 3.0, 0.25, steps=steps, start=starts)
    return search_rate(search, "a", keeps), tried


@pytest.mark.parametrize("limit", [1.0, 1.3, 2.0, 2.9, 3.0, 7.0])
@pytest.mark.parametrize("start", [None, 0.1, 1.0, 1.9, 3.0, 9.0])
def test_it_finds_the_highest_rate_of_its_grid(limit, start):
    found, tried = searched(limit, start=start)
    assert found == max(r / 4 for r in range(4, 13) if r / 4 <= limit)
    assert len(tried) == len(set(tried)), "no rate is tried twice"
    assert len(tried) <= 6


def test_a_good_start_needs_two_runs():
    assert searched(2.1, start=2.0) == (2.0, [2.0, 2.25])
    assert searched(1.8, start=2.0) == (1.75, [2.0, 1.75])
    assert searched(9.0, start=3.0) == (3.0, [3.0])


def test_a_server_that_keeps_up_with_nothing():
    assert searched(0.5, start=1.5) == (None, [1.5, 1.25, 1.0])


def test_the_runs_are_bounded():
    assert searched(9.0, steps=1, start=1.0) == (1.0, [1.0])
    assert searched(0.5, steps=1, start=2.0) == (None, [2.0])


def verdict_of(count: int, attainment: float = 0.9) -> tuple[Verdict, list[Row]]:
    rows = [Row("a", "", 0, 1.0, i, "", float(i), 10) for i in range(count)]
    search = Search("", ("a",), TARGET, 1.0, 3.0, 0.25, attainment)
    return Verdict(search, rows), rows


def answer(verdict: Verdict, row: Row, ttft: float = 0.5, gap: float = 0.05, error: str = ""):
    row.ttft_s, row.itls_s, row.error = ttft, [gap], error
    verdict.finished(row)


def test_a_run_ends_when_enough_have_kept_the_target():
    verdict, rows = verdict_of(10)
    for row in rows[:8]:
        answer(verdict, row)
    assert verdict.look(8.0) is None
    answer(verdict, rows[8])
    assert verdict.look(9.0) is True, "nine of ten, whatever the last one does"


@pytest.mark.parametrize("miss", [{"ttft": 1.1}, {"gap": 0.2}, {"error": "HTTP 500"}])
def test_a_run_ends_when_too_many_have_missed_it(miss):
    verdict, rows = verdict_of(10)
    answer(verdict, rows[0], **miss)
    assert verdict.look(1.0) is None, "one in ten may"
    answer(verdict, rows[1], **miss)
    assert verdict.look(2.0) is False


def test_requests_under_way_that_have_missed_it_are_not_waited_for():
    verdict, rows = verdict_of(10)
    rows[0].ttft_s, rows[0].itls_s = 0.5, [0.05, 0.3]
    assert verdict.look(1.9) is None, "one slow token; the second request has waited 0.9 s"
    assert verdict.look(2.1) is False
    verdict, rows = verdict_of(10)
    for row in rows[:3]:
        row.ttft_s = 0.5
    assert verdict.look(4.9) is None, "the fourth has waited 1.9 s, the fifth 0.9 s"
    assert verdict.look(5.1) is False
