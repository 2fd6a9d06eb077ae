"""Late results and the early ones after them teach what is true of both, whatever the layer groups."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import CohortWork, DecodeWork, Iteration, Lessons
from layered_sglang.scheduling.learning import MOST_TOGETHER
from worlds import estimator

DECODE, COHORT = DecodeWork(2, 16_000), CohortWork.of_prompt(8000)


@pytest.mark.parametrize("decodes", [0, 1, 20])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_what_a_layer_group_takes_is_learnt_however_late_results_are_seen(groups, decodes):
    est = estimator()
    lessons = Lessons(est)
    line = est.model.merged(DECODE, COHORT)
    layers, rng = 48 // groups, random.Random(3)
    for _ in range(2000):
        for i in range(decodes):
            late = 0.010 if i == decodes - 1 else 0.0
            seconds = est.model.decode(DECODE).seconds() * rng.lognormvariate(0, 0.02)
            lessons.measured(Iteration(DECODE), seconds + late, i == decodes - 1)
        for g in range(groups):
            it = Iteration(DECODE, COHORT, layers, g == 0, g == groups - 1)
            seconds = 1.2 * line.at(it.first, it.last).seconds(layers) * rng.lognormvariate(0, 0.02)
            before_next = it.last and decodes == 0
            late = 0.010 if before_next else 0.0
            early = 0.010 if it.first else 0.0
            lessons.measured(it, seconds + late - early, before_next)
    told = est.merged(DECODE, COHORT).seconds(layers)
    assert told == pytest.approx(1.2 * line.seconds(layers), rel=0.02)
    assert est.decode(DECODE) == pytest.approx(est.model.decode(DECODE).seconds(), rel=0.05)


def test_a_late_result_alone_teaches_nothing_and_what_follows_something_else_neither():
    est = estimator()
    lessons = Lessons(est)
    lessons.measured(Iteration(DECODE), 1.0, True)
    lessons.measured(Iteration(DECODE), est.model.decode(DECODE).seconds(), False)
    assert est.correction.decode == pytest.approx(1.0) and est.correction.seen == 1
    lessons.measured(Iteration(DECODE), 1.0, True)
    lessons.forget()
    first = Iteration(DECODE, COHORT, 8, first=True)
    line = est.model.merged(DECODE, COHORT)
    lessons.measured(first, line.at(True, False).seconds(8), False)
    assert est.correction.cohort == pytest.approx(1.0) and est.correction.seen == 2


def test_whole_prompts_without_end_are_learnt_from():
    """Each is launched long, so every result is late; after so many the sum is taken as it is."""
    est = estimator()
    lessons = Lessons(est)
    whole = Iteration(DECODE, COHORT, 48, True, True)
    seconds = 1.3 * est.model.merged(DECODE, COHORT).at(True, True).seconds(48)
    for _ in range(100 * MOST_TOGETHER):
        lessons.measured(whole, seconds, True)
    assert est.correction.seen == 100
    assert est.merged(DECODE, COHORT).at(True, True).seconds(48) == pytest.approx(seconds, rel=0.02)


lists = st.lists(st.tuples(st.integers(0, 3), st.floats(1e-4, 0.2), st.booleans()), max_size=60)


@given(lists)
def test_ranks_that_are_told_the_same_learn_the_same(told):
    kinds = [
        Iteration(DECODE),
        Iteration(DECODE, COHORT, 8, first=True),
        Iteration(DECODE, COHORT, 8),
        Iteration(DECODE, COHORT, 48, True, True),
    ]
    ranks = [(est := estimator(), Lessons(est)) for _ in range(2)]
    for kind, seconds, long in told:
        for _, lessons in ranks:
            lessons.measured(kinds[kind], seconds, long)
    one, other = (est for est, _ in ranks)
    assert one.correction == other.correction
