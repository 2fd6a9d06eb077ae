"""benchmarks/serving/host_time.py: the clock counts each part once; turns become figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from host_clock import PARTS, HostClock, cost_of_a_change
from host_time_table import added_ms, by_kind, host_ms, kind_of, print_report


class Time:
    """Nanoseconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now

    def passes(self, ns: int) -> None:
        self.now += ns


@pytest.fixture
def clocked() -> tuple[HostClock, Time]:
    time = Time()
    return HostClock(time), time


def test_time_inside_another_part_is_not_counted_twice(clocked) -> None:
    clock, time = clocked
    inner = clock.timed("graphs", time.passes)

    def launch() -> None:
        time.passes(5)
        inner(70)
        time.passes(3)
        inner(100)

    clock.turn()
    clock.note(kind="decode", batch=1)
    time.passes(1)
    clock.timed("launch", launch)()
    time.passes(2)
    clock.turn()
    [turn] = clock.turns
    assert turn["ns"] == {"loop": 3, "launch": 8, "graphs": 170}
    assert (turn["kind"], turn["batch"]) == ("decode", 1)


def test_turns_of_which_nothing_is_said_are_dropped(clocked) -> None:
    clock, time = clocked
    for kind in (None, "decode", None):
        clock.turn()
        clock.timed("receive", time.passes)(10)
        if kind:
            clock.note(kind=kind)
    clock.stop()
    assert [turn["ns"]["receive"] for turn in clock.turns] == [10]


def test_a_part_that_fails_ends_there(clocked) -> None:
    clock, time = clocked

    def fail() -> None:
        time.passes(4)
        raise KeyError

    clock.turn()
    clock.note(kind="decode")
    with pytest.raises(KeyError):
        clock.timed("plan", fail)()
    time.passes(6)
    clock.stop()
    assert clock.turns[0]["ns"] == {"loop": 6, "plan": 4}


def test_between_turns_nothing_is_counted(clocked) -> None:
    clock, _ = clocked
    assert clock.timed("sample", lambda x: x + 1)(1) == 2
    assert clock.turns == []
    assert 0 < cost_of_a_change() < 1e6


def turn(ms: float, kind: str = "decode", batch: int = 8, **about) -> dict:
    ns = {"launch": int(ms * 1e6), "gpu": 50_000_000}
    return {"kind": kind, "batch": batch, "changes": 10, "ns": ns, **about}


def test_kinds() -> None:
    assert kind_of(turn(1)) == "decode"
    assert kind_of(turn(1, admits=True)) == "decode, admitting"
    assert kind_of(turn(1, "merged", layers=3)) == "merged, graphs"
    assert kind_of(turn(1, "merged", eager=True, admits=True)) == "merged, eager, admitting"
    assert kind_of(turn(1, "prefill", admits=True)) == "prefill"


def test_waiting_for_the_gpu_is_no_host_time() -> None:
    assert host_ms(turn(2.5)) == 2.5


def test_figures_are_of_the_batch_asked_for() -> None:
    turns = [turn(ms) for ms in (1.0, 2.0, 6.0)] + [turn(100.0, batch=7)]
    figures = by_kind([*turns, turn(9.0, "prefill", batch=1, admits=True)], 8)
    assert list(figures) == ["decode", "prefill"]
    decode = figures["decode"]
    assert (decode["n"], decode["host_ms"], decode["host_p50_ms"]) == (3, 3.0, 2.0)
    assert decode["parts_ms"]["launch"] == 3.0 and decode["parts_ms"]["gpu"] == 50.0
    assert list(decode["parts_ms"]) == list(PARTS)


def host(**ms: float) -> dict:
    return {
        name: {"cost_of_a_change_ns": 500.0, "batches": {8: by_kind([turn(value)], 8)}}
        for name, value in ms.items()
    }


def test_what_layered_adds(capsys) -> None:
    figures = host(stock=1.0, layered=1.4)
    assert added_ms(figures) == {8: pytest.approx(0.4)}
    assert added_ms(host(stock=1.0)) == {}
    report = {
        "itl_ms": {8: {"stock": [5.0, 5.1, 5.0], "layered": [5.2, 5.2, 5.2]}},
        "host": figures,
        "seconds": 1,
    }
    print_report(report)
    text = capsys.readouterr().out
    assert "ratio 1.0400: more than 1% longer" in text
    assert "adds +0.400 ms of host time to stock's (medians), MORE than 0.3 ms" in text
