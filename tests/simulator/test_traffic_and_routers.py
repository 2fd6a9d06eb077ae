"""Lengths, arrivals and traces are what was asked for; routers spread what arrives."""

from __future__ import annotations

import numpy as np
import pytest
from layered_sglang.simulator.errors import SimulationError
from layered_sglang.simulator.router import ROUTERS, route
from layered_sglang.simulator.run import simulate
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import arrivals, lengths, make_traffic
from test_replica import MODEL, SETUP


def test_lognormal_lengths_have_their_median_and_p90():
    drawn = lengths("lognormal:7059,12985", 100_000, np.random.default_rng(0))
    assert np.median(drawn) == pytest.approx(7059, rel=0.02)
    assert np.percentile(drawn, 90) == pytest.approx(12985, rel=0.02)


def test_mixtures_have_their_shares():
    drawn = lengths("0.9*uniform:10,20+0.1*const:16000", 100_000, np.random.default_rng(0))
    assert (drawn == 16000).mean() == pytest.approx(0.1, abs=0.005)
    assert set(drawn[drawn != 16000]) == set(range(10, 21))


@pytest.mark.parametrize("spec, cv", [("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0.5", 0.5)])
def test_arrivals_have_their_rate_and_burstiness(spec, cv):
    gaps = np.diff(arrivals(spec, 5.0, 200_000, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_a_trace_is_replayed_repeated_and_scaled(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n10,5,6\n11,7,8\n14,9,10\n")
    options = {"arrival": "replay", "prompts": "", "outputs": "", "trace": path}
    as_it_is = make_traffic(requests=5, rate=None, **options)
    assert as_it_is.arrival.tolist() == [0, 1, 4, 6, 7]
    assert as_it_is.prompt.tolist() == [5, 7, 9, 5, 7]
    assert as_it_is.output.tolist() == [6, 8, 10, 6, 8]
    faster = make_traffic(requests=5, rate=8.0, **options)
    assert faster.arrival[-1] == pytest.approx(4 / 8)


@pytest.mark.parametrize("router", ROUTERS)
def test_routers_use_every_replica_evenly(router):
    requests = make_traffic(
        requests=4000, rate=100, arrival="poisson", prompts="lognormal:500,3000", outputs="const:9"
    )
    counts = np.bincount(route(router, requests, 8, MODEL), minlength=8)
    assert counts.min() > 0.8 * 500 and counts.sum() == 4000


def test_least_loaded_waits_less_than_round_robin_under_uneven_load():
    requests = make_traffic(
        requests=2000,
        rate=24,
        arrival="poisson",
        prompts="0.9*const:200+0.1*const:16000",
        outputs="const:20",
    )
    mean = {
        router: simulate(System("chunked", 8192), SETUP, requests, 4, router).ttft.mean()
        for router in ("round-robin", "least-loaded")
    }
    assert mean["least-loaded"] < mean["round-robin"]


def test_prefix_aware_computes_fewer_tokens():
    requests = make_traffic(
        requests=1000,
        rate=30,
        arrival="poisson",
        prompts="const:100",
        outputs="const:10",
        shared_prefix=(50, 2000),
    )
    computed = {
        router: simulate(System("slo", 50), SETUP, requests, 8, router).computed_tokens
        for router in ("least-loaded", "prefix-aware")
    }
    assert computed["prefix-aware"] < 0.7 * computed["least-loaded"]


@pytest.mark.parametrize(
    "spec", ["", "lognormal:5", "const:0", "uniform:9,3", "x*const:3", "zipf:2"]
)
def test_lengths_that_are_none_are_quoted(spec):
    with pytest.raises(SimulationError, match=r"^lengths '.*' are none of lognormal"):
        lengths(spec, 10, np.random.default_rng(0))
