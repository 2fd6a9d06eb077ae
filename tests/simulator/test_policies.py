"""What the policies promise, seen from the requests: targets, and short prompts beside long ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import layered_sglang
import numpy as np
import pytest
from layered_sglang.scheduling import Estimator
from layered_sglang.scheduling.correction import FIRST, OnlineCorrection
from layered_sglang.scheduling.estimator import NOMINAL_LIMIT
from layered_sglang.scheduling.profile import CostProfile
from layered_sglang.simulator.run import simulate
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import make_traffic
from test_replica import MODEL, SETUP, Setup

PROFILE = Path(layered_sglang.__file__).parent / "profiles" / "h200-qwen3-30b-a3b-fa3.json"
ARXIV = {"arrival": "poisson", "prompts": "lognormal:7059,12985", "outputs": "lognormal:208,371"}


@pytest.mark.parametrize("milliseconds", [20, 30, 50, 100])
def test_slo_keeps_every_gap_within_its_target(milliseconds):
    requests = make_traffic(requests=200, rate=2.0, **ARXIV)
    outcome = simulate(System("slo", milliseconds), SETUP, requests)
    assert outcome.worst.max() <= milliseconds / 1e3 * (1 + 1e-9)


def test_slo_keeps_99_of_100_gaps_in_a_world_that_it_does_not_know():
    requests = make_traffic(requests=400, rate=2.0, **ARXIV)
    setup = Setup(MODEL, 600_000, noise=0.05, bias=1.2)
    figures = simulate(System("slo", 30), setup, requests).summary(10, 0.05)
    assert figures["itl_ms"]["p99"] <= 30.5


@pytest.mark.parametrize("prompts", ["uniform:1000,2600", "lognormal:7059,12985"])
def test_slo_keeps_99_of_100_gaps_from_figures_that_are_far_off(prompts):
    """The planner's GPU is half as fast for decode and twice for the experts' products; short prompts run
    whole, which makes each result before them late and their own early."""
    c = MODEL.coefficients
    other = dataclasses.replace(
        c, expert_bandwidth=c.expert_bandwidth / 2, expert_flops=2 * c.expert_flops
    )
    believed = dataclasses.replace(MODEL, coefficients=other)
    estimator = Estimator(believed, OnlineCorrection(NOMINAL_LIMIT, first=FIRST))
    requests = make_traffic(
        requests=300, rate=2.0 if "log" in prompts else 5.0, **(ARXIV | {"prompts": prompts})
    )
    setup = Setup(MODEL, 600_000, noise=0.03, estimator=estimator)
    figures = simulate(System("slo", 30), setup, requests, processes=1).summary(10, 0.05)
    assert figures["itl_ms"]["p99"] <= 30.3


@pytest.mark.parametrize(
    ("prompts", "rate", "milliseconds"),
    [("0.9*uniform:100,1000+0.1*const:16000", 5.0, 28), ("uniform:100,6000", 3.0, 24)],
)
def test_a_host_twice_as_slow_keeps_the_target_because_its_launches_are_learnt(
    prompts, rate, milliseconds, monkeypatch
):
    """The result before a cohort's first layer group waits for its launch. A planner that knows only the
    sum of the two takes its host for as fast as the profile's, and misses."""
    c = CostProfile.read(PROFILE).coefficients
    host = {name: 2 * value for name, value in vars(c).items() if name.startswith("host")}
    believed = dataclasses.replace(MODEL, coefficients=c)
    slow = dataclasses.replace(MODEL, coefficients=dataclasses.replace(c, **host))
    requests = make_traffic(
        requests=300, rate=rate, arrival="poisson", prompts=prompts, outputs="lognormal:150,300"
    )

    def served() -> tuple[float, float]:
        """P99 ITL (ms), and the share of the requests without a gap above the target."""
        setup = Setup(slow, 600_000, noise=0.03, host_noise=0.06, estimator=Estimator(believed))
        simulate(System("slo", milliseconds), setup, requests, processes=1)  # the planner learns
        outcome = simulate(System("slo", milliseconds), setup, requests, processes=1)
        figures = outcome.summary(2, milliseconds / 1e3)
        return figures["itl_ms"]["p99"], figures["attainment"]

    p99, learnt = served()
    monkeypatch.setattr(Estimator, "observe_launch", lambda *told: None)
    p99_without, unknown = served()
    assert p99 <= milliseconds and learnt > 0.85
    assert p99_without > p99 and unknown < learnt - 0.25, (p99_without, unknown)


def test_short_prompts_do_not_wait_behind_long_ones():
    requests = make_traffic(
        requests=1500,
        rate=8.0,
        arrival="poisson",
        prompts="0.9*uniform:100,1000+0.1*const:16000",
        outputs="lognormal:150,300",
    )
    short = requests.prompt <= 1000
    p99 = {
        kind: np.percentile(simulate(System(kind, number), SETUP, requests).ttft[short], 99)
        for kind, number in (("slo", 50), ("fixed", 512))
    }
    assert p99["slo"] <= 0.5 * p99["fixed"]


def test_layer_groups_read_fewer_expert_bytes_than_chunks():
    requests = make_traffic(requests=200, rate=2.0, **ARXIV)
    fixed, mixed = (
        simulate(System(kind, 512), SETUP, requests).expert_bytes for kind in ("fixed", "mixed")
    )
    assert fixed < 0.7 * mixed
