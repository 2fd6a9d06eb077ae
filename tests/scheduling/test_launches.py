"""The host's launch times: learnt apart from the GPU's, bounded, robust, and planned by."""

from __future__ import annotations

import dataclasses
import math
import random

import checks
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import (
    CohortView,
    CohortWork,
    DecodeWork,
    Estimator,
    Iteration,
    SloLayerGroups,
)
from layered_sglang.scheduling.launches import (
    GAIN,
    LIMIT,
    SPREAD_MOST,
    STALL,
    LaunchCorrection,
)
from worlds import decodes, estimator, works

DECODE = DecodeWork(8, 16_000)
LONG, SHORT = CohortWork.of_prompt(8000), CohortWork.of_prompt(500)


def launched(est: Estimator, truth: float, cohort: CohortWork, count: int = 60) -> None:
    """First layer groups whose launches take ``truth`` times what the model says."""
    for i in range(count):
        group = Iteration(DECODE, cohort, 4 + i % 40, first=True)
        line = est.model.merged(DECODE, cohort).at(True, False)
        est.observe_launch(group, truth * line.host_seconds(group.layers))


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_it_comes_to_what_is_measured(truth):
    rng = random.Random(1)
    launches = LaunchCorrection()
    for _ in range(2000):
        launches.observe(truth * 0.010 * rng.lognormvariate(0, 0.1), 0.010, graphed=False)
    assert launches.eager == pytest.approx(truth, rel=0.1)
    assert launches.factor(False) == pytest.approx(truth * math.exp(1.645 * 0.1), rel=0.15)
    assert launches.graphs == 1.0


def test_most_launches_are_covered_and_no_stall_leads_far():
    checks.check_launches_are_covered_and_bounded(LaunchCorrection())


def test_a_start_in_which_every_third_launch_stalls_is_soon_forgotten():
    """Kernels that come for the first time hold a launch for hundreds of milliseconds."""
    launches = LaunchCorrection()
    for i in range(60):
        launches.observe(0.4 if i % 3 == 0 else 0.010, 0.010, graphed=False)
    assert launches.factor(False) < 2
    for _ in range(60):
        launches.observe(0.010, 0.010, graphed=False)
    assert launches.factor(False) < 1.15


def test_the_host_and_the_gpu_are_told_apart():
    checks.check_host_and_gpu_are_told_apart(estimator())


samples = st.tuples(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(-1, 10), st.booleans()
)


@given(st.lists(samples, max_size=200))
def test_whatever_is_measured_the_factors_stay_in_their_bounds(told):
    launches = LaunchCorrection()
    for seconds, predicted, graphed in told:
        before = dataclasses.replace(launches)
        launches.observe(seconds, predicted, graphed)
        for name in ("graphs", "eager"):
            was, now = getattr(before, name), getattr(launches, name)
            assert 1 / LIMIT <= now <= LIMIT
            assert abs(math.log(now / was)) <= GAIN * STALL * (1 + 1e-9), "one moves it by little"
        assert 0 <= launches.spread <= SPREAD_MOST
        other = "eager" if graphed else "graphs"
        assert getattr(launches, other) == getattr(before, other)


def test_as_long_as_no_launch_is_measured_nothing_changes():
    est = estimator()
    line = est.model.merged(DECODE, LONG)
    assert est.launches.factor(True) is None and est.merged(DECODE, LONG) == line
    est.correction.decode, est.correction.cohort = 1.1, 1.3
    assert est.merged(DECODE, LONG).host_per_layer == pytest.approx(1.3 * line.host_per_layer)


def test_without_overlap_a_launch_is_no_time_of_its_own():
    est = estimator(overlap=False)
    launched(est, 3.0, LONG)
    assert est.launches.seen == 0


@pytest.mark.parametrize(("cohort", "layers"), [(LONG, 1), (SHORT, 48)])
def test_a_launch_that_takes_longer_than_the_gpu_teaches_nothing_of_it(cohort, layers):
    """The host is much slower, so every result before a first group is late."""
    est = estimator()
    launched(est, 3.5, cohort)
    line = est.merged(DECODE, cohort).at(True, False)
    before = dataclasses.replace(est.correction)
    assert line.host_seconds(layers) > line.device_seconds(layers)
    for _ in range(200):
        est.observe([Iteration(DECODE, cohort, layers, True, False)], line.host_seconds(layers))
    assert est.correction == before


def test_what_the_gpu_decides_is_learnt_beside_a_slow_host():
    est = estimator()
    launched(est, 2.0, LONG)
    line = est.model.merged(DECODE, LONG)
    for _ in range(400):
        est.observe([Iteration(DECODE, LONG, 12)], 1.3 * line.device_seconds(12))
    assert est.merged(DECODE, LONG).device_seconds(12) == pytest.approx(
        1.3 * line.device_seconds(12), rel=0.02
    )


def group(est: Estimator, cohort: CohortWork, target: float) -> int:
    view = CohortView(48, 0, cohort, DECODE, target)
    return SloLayerGroups(est).next_layer_group(view).end


@pytest.mark.parametrize("cohort", [LONG, SHORT])
def test_a_slow_host_s_first_layer_group_keeps_the_iteration_before_it_within_the_target(cohort):
    est = estimator()
    target = 0.030
    before = group(est, cohort, target)
    launched(est, 3.0, cohort)
    layers = group(est, cohort, target)
    assert 1 <= layers < before
    assert est.launch(Iteration(DECODE, cohort, layers, first=True)) <= target
    assert est.launch(Iteration(DECODE, cohort, before, first=True)) > target


@given(decodes, works, st.floats(0.2, 4), st.floats(0.005, 0.2))
def test_the_launch_is_within_the_target_or_one_layer_is_run(decode, cohort, truth, target):
    if decode.requests == 0:
        return
    est = estimator()
    line = est.model.merged(decode, cohort).at(True, False)
    for i in range(40):
        it = Iteration(decode, cohort, 1 + i, first=True)
        est.observe_launch(it, truth * line.host_seconds(1 + i))
    end = SloLayerGroups(est).next_layer_group(CohortView(48, 0, cohort, decode, target)).end
    launch = est.launch(Iteration(decode, cohort, end, first=True))
    assert launch <= target * (1 + 1e-9) or end == 1


def test_ranks_that_are_told_the_same_launches_predict_the_same_to_the_last_bit():
    one, other = estimator(), estimator()
    rng = random.Random(2)
    for _ in range(200):
        it = Iteration(DECODE, rng.choice([LONG, SHORT]), rng.randrange(1, 49), first=True)
        seconds = rng.uniform(0.001, 0.1)
        for rank in (one, other):
            rank.observe_launch(it, seconds)
            rank.observe([it], seconds)
    assert one.merged(DECODE, LONG) == other.merged(DECODE, LONG)
    assert one.merged(DECODE, SHORT) == other.merged(DECODE, SHORT)
    assert one.prefill(LONG) == other.prefill(LONG)
