"""When requests arrive, as seconds after the start of a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from layered_sglang.bench.spec.located import Located


class Arrivals(Protocol):
    """``times`` yields ascending seconds; ``rate`` is requests per second, None: as the trace has it."""

    def times(self, rate: float | None, rng: random.Random) -> Iterator[float]: ...

    @property
    def rate(self) -> float | None: ...


@dataclass(frozen=True)
class Gamma:
    """Independent gaps from a gamma distribution.

    Attributes:
        rate: requests per second.
        cv: standard deviation of the gaps over their mean; 1 is a Poisson process, more is bursty.
    """

    rate: float | None
    cv: float = 1.0

    def times(self, rate: float | None, rng: random.Random) -> Iterator[float]:
        rate = rate or self.rate
        assert rate is not None
        shape = 1 / self.cv**2
        return accumulate(_forever(lambda: rng.gammavariate(shape, 1 / (shape * rate))))


@dataclass(frozen=True)
class AtOnce:
    """Everything at the start: no load is offered faster."""

    rate: float | None = None

    def times(self, rate: float | None, rng: random.Random) -> Iterator[float]:
        return _forever(lambda: 0.0)


@dataclass(frozen=True)
class Replay:
    """The arrival times of a trace.

    Attributes:
        seconds: of the trace's rows, from 0.
        time_scale: 2 replays at half the speed.
    """

    seconds: tuple[float, ...]
    time_scale: float = 1.0
    rate: float | None = None

    def times(self, rate: float | None, rng: random.Random) -> Iterator[float]:
        scale = self.time_scale
        if rate is not None:
            span = self.seconds[-1] - self.seconds[0]
            scale = (len(self.seconds) - 1) / span / rate
        return (t * scale for t in self.seconds)


def read_arrivals(at: Located, trace: tuple[float, ...] | None) -> Arrivals:
    """``{poisson: {rate}}``, ``{bursty: {rate, cv}}``, ``{replay: {time_scale}}`` or ``at_once``.

    Args:
        trace: arrival times of the scenario's trace, None where it has none.
    """
    if at.value() == "at_once":
        return AtOnce()
    kind, inner = at.one_of(("poisson", "bursty", "replay"))
    if kind == "replay":
        scale = inner.get("time_scale", Located.positive, 1.0)
        inner.finish()
        if trace is None or len(trace) < 2 or trace[-1] <= trace[0]:
            raise at.error("needs a trace with a column of arrival times (workload.trace)")
        return Replay(tuple(sorted(trace)), scale)
    arrivals = Gamma(
        inner.required("rate").positive(),
        inner.required("cv").positive() if kind == "bursty" else 1.0,
    )
    inner.finish()
    return arrivals


def _forever(draw: Callable[[], float]) -> Iterator[float]:
    while True:
        yield draw()
