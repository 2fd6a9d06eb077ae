"""Requests: the same from the same seed, and distributed as the scenario says."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice, pairwise
from statistics import fmean, median, pstdev

import pytest
from layered_sglang.bench.spec.arrivals import AtOnce, Gamma, Replay
from layered_sglang.bench.spec.lengths import Fixed, LogNormal, Mixture, Trace, Uniform
from layered_sglang.bench.spec.workload import SharedPrefix, Workload, make_requests
from layered_sglang.bench.summary import percentile

PLAIN = Workload(
    prompt=LogNormal(700, 1300),
    output=Uniform(2, 9),
    trace=None,
    arrivals=Gamma(2.0),
    requests=50,
    duration=None,
    shared_prefix=None,
    seed=3,
)


def test_the_same_seed_gives_the_same_requests_and_another_does_not():
    requests = make_requests(PLAIN, 1000)
    assert requests == make_requests(PLAIN, 1000)
    assert requests != make_requests(replace(PLAIN, seed=4), 1000)
    assert len(requests) == 50
    assert all(0 <= token < 1000 for request in requests for token in request.prompt)
    assert [r.arrival for r in requests] == sorted(r.arrival for r in requests)


def test_another_repeat_has_other_tokens_of_the_same_lengths_and_times():
    first, second = make_requests(PLAIN, 1000), make_requests(PLAIN, 1000, repeat=1)
    assert [len(r.prompt) for r in first] == [len(r.prompt) for r in second]
    assert [r.arrival for r in first] == [r.arrival for r in second]
    assert all(a.prompt[:8] != b.prompt[:8] for a, b in zip(first, second, strict=True))


def test_a_higher_rate_sends_the_same_requests_sooner():
    slow, fast = make_requests(PLAIN, 1000), make_requests(PLAIN, 1000, rate=4.0)
    assert [r.prompt for r in slow] == [r.prompt for r in fast]
    for a, b in zip(slow, fast, strict=True):
        assert b.arrival == pytest.approx(a.arrival / 2)


def test_a_duration_bounds_the_arrivals():
    requests = make_requests(replace(PLAIN, requests=None, duration=100.0), 10)
    assert requests[-1].arrival < 100
    assert 160 < len(requests) < 240


def test_log_normal_lengths_have_their_median_and_p90():
    rng = random.Random(0)
    drawn = [LogNormal(7059, 12985).draw(rng) for _ in range(20_000)]
    assert median(drawn) == pytest.approx(7059, rel=0.02)
    assert percentile(drawn, 90) == pytest.approx(12985, rel=0.02)
    cut = [LogNormal(100, 300, 50, 200).draw(rng) for _ in range(1000)]
    assert (min(cut), max(cut)) == (50, 200)


def test_a_mixture_has_its_shares():
    rng = random.Random(0)
    mixture = Mixture(((9, Uniform(100, 999)), (1, Fixed(16_000))))
    drawn = [mixture.draw(rng) for _ in range(10_000)]
    assert drawn.count(16_000) == pytest.approx(1000, rel=0.1)
    assert all(100 <= tokens <= 999 for tokens in drawn if tokens != 16_000)


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_gaps_have_their_mean_and_variation(cv):
    times = list(islice(Gamma(5.0, cv).times(None, random.Random(0)), 40_000))
    gaps = [b - a for a, b in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.2, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_a_replayed_trace_keeps_its_order_and_times():
    trace = Trace(((5, 1), (6, 2), (7, 3)), (0.0, 1.0, 4.0))
    workload = replace(
        PLAIN, prompt=None, output=None, trace=trace, arrivals=Replay(trace.arrivals, 2.0)
    )
    requests = make_requests(workload, 10)
    assert [(r.arrival, len(r.prompt), r.output_tokens) for r in requests] == [
        (0.0, 5, 1),
        (2.0, 6, 2),
        (8.0, 7, 3),
    ]
    at_rate = make_requests(workload, 10, rate=1.0)
    assert [r.arrival for r in at_rate] == [0.0, 0.5, 2.0]


def test_other_arrivals_draw_from_the_trace():
    trace = Trace(((5, 1), (6, 2)), ())
    requests = make_requests(replace(PLAIN, prompt=None, output=None, trace=trace), 10)
    assert {(len(r.prompt), r.output_tokens) for r in requests} == {(5, 1), (6, 2)}


def test_shared_prefixes():
    workload = replace(
        PLAIN, prompt=Fixed(3), arrivals=AtOnce(), shared_prefix=SharedPrefix(20, 2), requests=30
    )
    requests = make_requests(workload, 1000)
    assert {len(r.prompt) for r in requests} == {23}
    assert len({r.prompt[:20] for r in requests}) == 2
    assert len({r.prompt for r in requests}) == 30
