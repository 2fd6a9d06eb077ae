"""When an iteration's time is known, on the rank that measured it and on the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layered_sglang.hooks.measurements import Measurements
from layered_sglang.hooks.rank_clock import RankClock
from layered_sglang.telemetry.trace import IterationTrace


class Estimator:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.learned, self.launches = [], 0

    def observe(self, iterations, seconds, exact=True) -> None:
        self.learned.append((len(iterations), round(seconds, 3)))

    def observe_launch(self, iteration, seconds) -> None:
        self.launches += 1


class Rank:
    def __init__(self, number: int) -> None:
        self.estimator, self.clock = Estimator(), RankClock()
        self.measurements = Measurements(
            SimpleNamespace(estimator=self.estimator, planner=None),
            self.clock,
            SimpleNamespace(count_iteration=lambda kind: None),
            IterationTrace(None),
            rank0=number == 0,
            on_gpu=False,
        )

    def launch(self, number: int, extends: bool = False):
        mode = SimpleNamespace(is_mixed=lambda: False, is_extend=lambda: extends)
        batch = SimpleNamespace(forward_mode=mode, reqs=[], seq_lens_cpu=None)
        launched = self.measurements.launch(number, batch, None)
        self.measurements.launched(launched)
        return launched


@pytest.fixture
def ranks():
    return [Rank(0), Rank(1)]


def test_a_time_is_learnt_from_when_rank_0_s_tick_brings_it(ranks):
    for rank in ranks:
        assert not rank.measurements.pending
        rank.measurements.finish(rank.launch(1))
        assert rank.measurements.pending, "its result is there, its time is not told yet"
        assert not rank.estimator.learned
    told = ranks[0].clock.tick()
    assert [number for number, _, _ in told.measured] == [1]
    assert ranks[1].clock.tick().measured == [], "rank 0's times count"
    for rank in ranks:
        rank.measurements.learn(rank.clock.split([told])[1])
        assert not rank.measurements.pending and rank.estimator.launches == 0
    assert ranks[0].estimator.learned == ranks[1].estimator.learned != []


def test_a_prefill_of_sglangs_teaches_nothing_and_its_launch_delays_the_result_before_it(ranks):
    """What is seen late is learnt from together with what follows, or not at all."""
    rank = ranks[0]
    for number in (1, 2, 3):
        rank.launch(number, extends=number == 2)
    rank.measurements.learn([(1, 0.5, 0.0), (2, 0.1, 0.0), (3, 0.2, 0.0)])
    assert rank.estimator.learned == [(1, 0.2)]
    assert not rank.measurements.pending


def test_a_time_of_an_iteration_that_is_not_known_is_passed_over(ranks):
    ranks[1].measurements.learn([(7, 0.5, 0.25)])
    assert not ranks[1].estimator.learned and not ranks[1].estimator.launches
