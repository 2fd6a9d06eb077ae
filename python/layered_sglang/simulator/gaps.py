"""Inter-token gaps: their distribution over all requests, and the worst of each request."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

#: Bins of the histogram: logarithmic, 1% wide, from 10 µs to about 1000 s.
LOWEST, PER_E, BINS = 1e-5, 100, 1850


def bin_middles() -> np.ndarray:
    """Seconds in the middle of each bin, float64 [BINS]."""
    return LOWEST * np.exp((np.arange(BINS) + 0.5) / PER_E)


class Gaps:
    """Gaps of requests that all decode in the same iterations.

    A request's worst gap is the largest of those after its first token; the gaps that may yet be the
    worst of someone are kept in descending order, so that both adding and asking are cheap.
    """

    def __init__(self) -> None:
        self.histogram = [0] * BINS
        self.total = 0.0
        self.count = 0
        self._ticks: list[int] = []
        self._falling: list[float] = []  # negative gaps, ascending with the ticks

    def add(self, seconds: float, requests: int) -> None:
        """``requests`` gaps of ``seconds`` each."""
        if requests:
            at = int(math.log(seconds / LOWEST) * PER_E) if seconds > LOWEST else 0
            self.histogram[min(at, BINS - 1)] += requests
            self.total += seconds * requests
            self.count += requests

    def lengthen(self, seconds: float, by: float, requests: int) -> None:
        """``requests`` of the gaps of ``seconds`` were longer than that."""
        self.add(seconds, -requests)
        self.add(seconds + by, requests)

    def note(self, tick: int, seconds: float) -> None:
        """The gap that ended with decode iteration ``tick`` was ``seconds`` for all who were there."""
        while self._falling and self._falling[-1] >= -seconds:
            self._falling.pop()
            self._ticks.pop()
        self._falling.append(-seconds)
        self._ticks.append(tick)

    def worst_after(self, tick: int) -> float:
        """The largest gap noted after ``tick``; 0 without any."""
        at = bisect_right(self._ticks, tick)
        return -self._falling[at] if at < len(self._ticks) else 0.0

    def forget(self) -> None:
        """Nobody decodes: no gap is anyone's any more."""
        self._ticks.clear()
        self._falling.clear()
