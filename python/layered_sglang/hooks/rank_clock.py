"""One clock for all tensor-parallel ranks.

Policies plan by waits and by measured iterations. Each rank measuring for itself would plan differently,
and ranks that disagree deadlock in their next all-reduce. So rank 0's clock and measurements travel
with the requests that SGLang broadcasts anyway, and every rank reads these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver


@dataclass
class Tick:
    """Rank 0's news for one turn of the scheduler's loop.

    Attributes:
        now: ``time.monotonic()`` there, seconds.
        measured: iterations whose results came since the last tick: (number, seconds, seconds of its
            launch or 0).
    """

    now: float
    measured: list[tuple[int, float, float]] = field(default_factory=list)


class TickingReceiver(SchedulerRequestReceiver):
    """Appends a tick to what rank 0 received, before it is broadcast."""

    make_tick: Callable[[bool], Tick | None]

    @classmethod
    def extend(
        cls, stock: SchedulerRequestReceiver, make_tick: Callable[[bool], Tick | None]
    ) -> TickingReceiver:
        """The same receiver, with ticks.

        Args:
            stock: SGLang's.
            make_tick: asked on rank 0 only, whether requests were received; ``None``: no news.
        """
        names = [f.name for f in fields(SchedulerRequestReceiver) if f.init]
        receiver = cls(**{name: getattr(stock, name) for name in names})
        object.__setattr__(receiver, "make_tick", make_tick)
        return receiver

    def _pull_raw_reqs(self) -> list[Any] | None:
        # SGLang's class has slots, which makes a new class of it: no zero-argument super() there.
        received = SchedulerRequestReceiver._pull_raw_reqs(self)
        if received is not None:
            tick = self.make_tick(bool(received))
            if tick is not None:
                received.append(tick)
        return received


class RankClock:
    """What this rank knows of rank 0's clock.

    Attributes:
        now: the time of the last tick, seconds; stands still while there are none.
    """

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._measured: list[tuple[int, float, float]] = []

    def measured(self, iteration: int, seconds: float, launch: float) -> None:
        """Rank 0: put a measurement into the next tick."""
        self._measured.append((iteration, seconds, launch))

    def tick(self) -> Tick:
        measured, self._measured = self._measured, []
        return Tick(time.monotonic(), measured)

    def split(self, received: list[Any]) -> tuple[list[Any], list[tuple[int, float, float]]]:
        """Take the ticks out of what was received.

        Returns:
            The requests, and the measurements.
        """
        requests, measured = [], []
        for item in received:
            if isinstance(item, Tick):
                self.now = item.now
                measured += item.measured
            else:
                requests.append(item)
        return requests, measured
