"""When an iteration's launch is a time of its own, with a clock that the test moves."""

from __future__ import annotations

import types

import pytest
from layered_sglang.hooks import iteration_log
from layered_sglang.hooks.iteration_log import IterationLog
from layered_sglang.scheduling import DecodeWork
from layered_sglang.telemetry.trace import IterationTrace


@pytest.fixture
def clock(monkeypatch):
    told = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        iteration_log, "time", types.SimpleNamespace(monotonic=lambda: told.now), raising=True
    )
    return told


def test_a_launch_is_counted_from_the_result_before_it_while_something_is_in_flight(clock):
    log = IterationLog(IterationTrace(None))

    def launch(number: int, seconds: float):
        launched = log.launch(number, "decode", None, None, DecodeWork(1, 10))
        clock.now += seconds
        log.launched(launched)
        return launched

    first = launch(1, 0.5)
    assert first.launch == 0.0, "nothing was in flight"
    second = launch(2, 0.020)
    assert second.launch == pytest.approx(0.020), "no result yet: from the launch before"
    clock.now += 0.003
    assert log.finish(first) > 0
    clock.now += 0.002  # planning
    third = launch(3, 0.010)
    assert third.launch == pytest.approx(0.012), "from the result, planning included"
    for it in (second, third):
        clock.now += 0.004
        log.finish(it)
    clock.now += 60  # nobody asks for anything
    assert launch(4, 0.010).launch == 0.0
