"""The online correction converges, stays bounded and shrugs at outliers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import CohortWork, DecodeWork, Iteration
from layered_sglang.scheduling.correction import FIRST, GAIN, OUTLIER, OnlineCorrection
from worlds import estimator


@pytest.mark.parametrize("truth", [0.6, 1.0, 1.7])
def test_it_converges_to_what_is_measured(truth):
    rng = random.Random(1)
    correction = OnlineCorrection(limit=2.0)
    for _ in range(2000):
        correction.observe(truth * 0.010 * rng.lognormvariate(0, 0.03), 0.010, 0.0)
    assert correction.decode == pytest.approx(truth, rel=0.03)
    assert correction.cohort == 1.0


def test_decode_and_cohort_parts_are_told_apart():
    rng = random.Random(2)
    correction = OnlineCorrection(limit=3.0)
    for i in range(6000):
        decode, cohort = rng.uniform(0.004, 0.012), rng.uniform(0.002, 0.020) * (i % 2)
        seconds = (1.3 * decode + 0.7 * cohort) * rng.lognormvariate(0, 0.03)
        correction.observe(seconds, decode, cohort)
    assert correction.decode == pytest.approx(1.3, rel=0.03)
    assert correction.cohort == pytest.approx(0.7, rel=0.05)


sample = st.tuples(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10), st.floats(0, 10)
)


@given(st.floats(1.01, 50), st.lists(sample, max_size=200))
def test_whatever_is_measured_factors_and_margin_stay_in_their_bounds(limit, samples):
    correction = OnlineCorrection(limit)
    for seconds, decode, cohort in samples:
        correction.observe(seconds, decode, cohort)
        assert 1 / limit <= correction.decode <= limit
        assert 1 / limit <= correction.cohort <= limit
        assert 0 <= correction.margin <= 0.5


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_one_outlier_moves_little(seconds):
    correction = OnlineCorrection(limit=50.0, first=FIRST, seen=FIRST)
    margin = correction.margin
    correction.observe(seconds, 0.010, 0.0)
    assert abs(math.log(correction.decode)) <= GAIN * OUTLIER * (1 + 1e-9) < 0.006
    assert correction.margin == margin


def test_the_first_iterations_bring_it_from_a_data_sheet_to_what_is_measured():
    correction = OnlineCorrection(limit=50.0, first=FIRST)
    for _ in range(FIRST):
        correction.observe(0.080, 0.010, 0.0)
    for _ in range(FIRST):
        correction.observe(0.160, 0.010, 0.080)
    assert 4 < correction.decode < 8.1
    assert correction.margin < 0.1, "a wrong start is no spread"


def test_iterations_that_look_short_beside_late_ones_do_not_decide():
    """One in four borders is late by all of its neighbour's time, as where the host is the slower."""
    rng = random.Random(5)
    correction = OnlineCorrection(limit=2.0)
    for _ in range(500):
        late = rng.random() < 0.25
        correction.observe(0.050 if late else 0.035, 0.010, 0.025, exact=False)
        correction.observe(0.010 if late else 0.035, 0.010, 0.025, exact=False)
    assert 0.95 < correction.cohort < 1.05


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.10])
def test_the_margin_covers_99_of_100_iterations_with_a_layer_group(noise):
    rng = random.Random(3)
    correction = OnlineCorrection(limit=2.0)
    late = 0
    for i in range(40_000):
        seconds = 0.025 * rng.lognormvariate(0, noise)
        if i >= 10_000:
            predicted = correction.decode * 0.010 + correction.cohort * 0.015
            late += seconds > predicted * (1 + correction.margin)
        correction.observe(seconds, 0.010, 0.015)
        # Decode alone is noisier here, and so are times that are not an iteration's own.
        correction.observe(0.010 * rng.lognormvariate(0, 0.15), 0.010, 0.0)
        if i % 4 == 0:
            correction.observe(0.025 * rng.lognormvariate(0, 0.15), 0.010, 0.015, exact=False)
    assert 0.005 <= late / 30_000 <= 0.015


def test_ranks_with_the_same_measurements_predict_the_same_to_the_last_bit():
    rng = random.Random(4)
    one, other = estimator(), estimator()
    decode, cohort = DecodeWork(16, 32_000), CohortWork.of_prompt(4096)
    for i in range(500):
        layers, seconds = rng.randrange(48), rng.uniform(0.005, 0.05)
        for rank in (one, other):
            rank.observe([Iteration(decode, cohort if i % 3 else None, layers)], seconds)
    assert one.merged(decode, cohort) == other.merged(decode, cohort)
    assert one.margin == other.margin
    assert one.decode(decode) != estimator().decode(decode)
